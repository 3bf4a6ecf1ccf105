"""Reads ImageNet: folders named by WordNet id (n01440764/*.JPEG), whose names stand in a file beside them.

Deng et al. 2009. Of one layout are ILSVRC2012, Kaggle's ImageNet-100 (train.X1 to train.X4, val.X) and other subsets.
"""

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from core.errors import DataError
from core.manifest import OF_CLASSES
from core.storage import is_local, local
from shard_builder.readers.files import read_text, require_folder
from shard_builder.readers.image_folder import IMAGE_SUFFIXES, WNID, class_prompts, files_under
from shard_builder.records import ReadResult, Record, Skip, clean_captions

SOURCE = "imagenet"
# Classes of ILSVRC2012 that share their first name with another one, or differ from it by a capital alone.
OF_ONE_NAME = {
    "n02012849": "crane bird",
    "n03126707": "construction crane",
    "n02113186": "Cardigan Welsh corgi",
    "n03710721": "tank suit",  # a maillot, too
}
_FILES = "LOC_synset_mapping.txt, imagenet_class_index.json or Labels.json"


def read_imagenet(
    split: str,
    *,
    folders: tuple[str, ...],
    classes: str,
    templates: tuple[str, ...] = (),
    templates_file: str | None = None,
) -> ReadResult:
    """The images of all class folders, ordered by WordNet id and file; each has one caption per template.

    A class is called by its first synonym ("tench" of "tench, Tinca tinca"); samples keep all of them in their json.

    Args:
        split: names the split only.
        folders: each holds folders named by WordNet id; what several hold of a class is one class.
        classes: the file of their names: LOC_synset_mapping.txt ("n01440764 tench, Tinca tinca" in each line),
            imagenet_class_index.json ({"0": ["n01440764", "tench"]}) or Labels.json ({"n01440764": "tench, ..."}).
        templates: texts with one `{}` for the class name; "a photo of a {}." when neither this nor a file is given.
        templates_file: a file with one template per line (`#` begins a comment), see configs/prompts.
    """
    if not folders:
        raise DataError("source imagenet: folders is empty. Set source.folders to what holds n01440764 and the like.")
    synonyms = read_synonyms(classes)
    names = class_names(classes, synonyms)
    prompts = class_prompts(SOURCE, templates, templates_file)
    records, skipped, seen = [], [], set()
    for wnid, class_folder in _class_folders(folders, classes, synonyms):
        seen.add(wnid)
        captions = clean_captions(prompt.replace("{}", names[wnid]) for prompt in prompts)
        for path in files_under(class_folder):
            image_id = (PurePosixPath(wnid) / path.relative_to(class_folder).as_posix()).as_posix()
            if path.suffix.lower() in IMAGE_SUFFIXES:
                records.append(Record(image_id, SOURCE, str(path), captions, names[wnid], synonyms[wnid]))
            else:
                skipped.append(Skip(image_id, SOURCE, "not_an_image", str(path)))
    if not records:
        raise DataError(f"{folders[0]}: its {len(seen)} class folders hold no images. Set source.folders.")
    ordered = sorted(records, key=lambda record: (record.image_id, record.image))  # whatever the order of the folders
    return ReadResult(tuple(ordered), tuple(skipped), tuple(sorted(names[wnid] for wnid in seen)), OF_CLASSES)


def read_synonyms(url: str) -> dict[str, tuple[str, ...]]:
    """WordNet id -> names of the class, the first one first; the file is known by what it holds.

    Raises:
        DataError: it is none of the three.
    """
    text = read_text(url, "classes")
    try:
        entries = _parse_json(json.loads(text)) if text.lstrip().startswith("{") else _parse_lines(text)
    except ValueError:
        entries = {}
    synonyms = {wnid: clean_captions(names.replace("_", " ").split(",")) for wnid, names in entries.items()}
    if not synonyms or not all(synonyms.values()) or not all(WNID.fullmatch(wnid) for wnid in synonyms):
        raise DataError(
            f"{url}: does not say what classes such as n01440764 are called. Set source.classes to {_FILES}."
        )
    return synonyms


def class_names(url: str, synonyms: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """WordNet id -> its first synonym; of those that share one, what `OF_ONE_NAME` calls them.

    All of the file's classes count, so that a subset, or another split, calls a class the same.

    Raises:
        DataError: two classes are still called alike.
    """
    firsts = [own[0].casefold() for own in synonyms.values()]
    shared = {name for name in firsts if firsts.count(name) > 1}
    names = {
        wnid: OF_ONE_NAME.get(wnid, own[0]) if own[0].casefold() in shared else own[0] for wnid, own in synonyms.items()
    }
    owner: dict[str, str] = {}
    for wnid, name in names.items():
        other = owner.setdefault(name.casefold(), wnid)
        if other != wnid:
            raise DataError(f"{url}: {other} and {wnid} are both class '{name}'. Give one another first name there.")
    return names


def _parse_json(entries: Mapping[str, object]) -> dict[str, str]:
    """Of Labels.json, or of imagenet_class_index.json."""
    if all(isinstance(entry, str) for entry in entries.values()):
        return {wnid: str(names) for wnid, names in entries.items()}
    pairs = [entry for entry in entries.values() if isinstance(entry, list) and len(entry) == 2]
    if len(pairs) < len(entries) or not all(isinstance(part, str) for pair in pairs for part in pair):
        raise ValueError
    return dict(pairs)


def _parse_lines(text: str) -> dict[str, str]:
    pairs = [line.strip().partition(" ")[::2] for line in text.splitlines() if line.strip()]
    return dict(pairs)


def _class_folders(
    folders: tuple[str, ...], classes: str, synonyms: Mapping[str, tuple[str, ...]]
) -> list[tuple[str, Path]]:
    """WordNet ids and folders; a class may lie in several."""
    found: list[tuple[str, Path]] = []
    for folder in folders:
        if not is_local(folder):
            raise DataError(f"{folder}: class folders are read from a local disk only. Copy them.")
        require_folder(folder, "folders")
        entries = sorted(entry for entry in local(folder).iterdir() if entry.is_dir() and entry.name[0] != ".")
        strange = [entry.name for entry in entries if not WNID.fullmatch(entry.name)]
        if strange or not entries:
            holds = f"'{strange[0]}' is not named" if strange else "no folder in it is named"
            raise DataError(
                f"{folder}: {holds} by a WordNet id. Set source.folders to what holds n01440764 and the like; several "
                "are a list, as [train.X1, train.X2]."
            )
        found += [(entry.name, entry) for entry in entries]
    unknown = sorted({wnid for wnid, _ in found} - synonyms.keys())
    if unknown:
        shown = ", ".join(unknown[:3])
        raise DataError(
            f"{classes}: lacks {len(unknown)} of the class folders ({shown}). Set source.classes to {_FILES}."
        )
    return found
