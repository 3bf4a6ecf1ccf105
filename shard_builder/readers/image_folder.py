"""Reads class folders (folder/<class>/*.jpg); a class name becomes captions through prompt templates.

Prompts for classes: Radford 2021, section 3.1.4.
"""

import os
import re
from pathlib import Path, PurePosixPath

from core.errors import DataError
from core.manifest import OF_CLASSES
from core.storage import is_local, local
from shard_builder.readers.files import read_text, require_folder
from shard_builder.records import ReadResult, Record, Skip, clean_captions

SOURCE = "image_folder"
WNID = re.compile(r"n\d{8}")  # how ImageNet names classes: WordNet's offset of a noun
DEFAULT_TEMPLATES = ("a photo of a {}.",)
IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".avif", ".heic", ".heif")
)


def read_image_folder(
    split: str,
    *,
    folder: str,
    templates: tuple[str, ...] = (),
    templates_file: str | None = None,
) -> ReadResult:
    """The images of all class folders, ordered by path; each has one caption per template.

    The folder `grand_piano` is the class "grand piano". Sub-folders of a class belong to it; hidden files are
    passed over, other files that are no images are skipped as "not_an_image".

    Args:
        split: names the split only.
        folder: holds one folder per class.
        templates: texts with one `{}` for the class name; `DEFAULT_TEMPLATES` when neither this nor a file is given.
        templates_file: a file with one template per line (`#` begins a comment), see configs/prompts.
    """
    if not is_local(folder):
        raise DataError(
            f"{folder}: class folders are read from a local disk only. Copy them, or list them in a .jsonl file."
        )
    require_folder(folder, "folder")
    _expect_words(folder)
    prompts = class_prompts(SOURCE, templates, templates_file)
    source = f"{SOURCE}:{local(folder).resolve().name}"  # ids of two folders must not meet in one set
    records, skipped = [], []
    class_folders = _class_folders(local(folder))
    for name, class_folder in class_folders.items():
        captions = clean_captions(prompt.replace("{}", name) for prompt in prompts)
        for path in files_under(class_folder):
            image_id = PurePosixPath(os.path.relpath(path, local(folder))).as_posix()
            if path.suffix.lower() in IMAGE_SUFFIXES:
                records.append(Record(image_id, source, str(path), captions, name))
            else:
                skipped.append(Skip(image_id, source, "not_an_image", str(path)))
    if not records:
        raise DataError(f"{folder}: its {len(class_folders)} class folders hold no images. Set source.folder.")
    return ReadResult(tuple(records), tuple(skipped), tuple(sorted(class_folders)), OF_CLASSES)


def _expect_words(folder: str) -> None:
    """Raise where a caption would be "a photo of a n01440764."."""
    wnids = sorted(entry.name for entry in local(folder).iterdir() if entry.is_dir() and WNID.fullmatch(entry.name))
    if wnids:
        others = f" and {len(wnids) - 1} other folders are" if len(wnids) > 1 else " is"
        raise DataError(
            f"{folder}: {wnids[0]}{others} named by WordNet ids, which make no captions. Set source.name=imagenet, "
            "source.folders to this folder, and source.classes to the file of their names (LOC_synset_mapping.txt, "
            "imagenet_class_index.json or Labels.json)."
        )


def _class_folders(folder: Path) -> dict[str, Path]:
    """Class name -> folder, ordered by the folder's name."""
    folders = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not folders:
        raise DataError(f"{folder}: holds no class folders. Set source.folder to the folder with one folder per class.")
    classes: dict[str, Path] = {}
    for path in folders:
        name = " ".join(path.name.replace("_", " ").split())
        if name in classes:
            raise DataError(f"{folder}: '{classes[name].name}' and '{path.name}' are both class '{name}'. Rename one.")
        classes[name] = path
    return classes


def files_under(folder: Path) -> list[Path]:
    """All files but hidden ones, ordered."""
    found = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(found)


def class_prompts(reader: str, templates: tuple[str, ...], templates_file: str | None) -> tuple[str, ...]:
    """Templates of a recipe, each with one place for the class name."""
    if templates and templates_file is not None:
        raise DataError(f"source {reader}: templates and templates_file are both given. Leave one out.")
    where, lines = "source.templates", list(templates or DEFAULT_TEMPLATES)
    if templates_file is not None:
        text = read_text(templates_file, "templates_file")
        where, lines = templates_file, [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    for line in lines:
        if line.count("{}") != 1:
            raise DataError(f"{where}: '{line}' does not hold one {{}} for the class name. Write 'a photo of a {{}}.'.")
    if not lines:
        raise DataError(f"{where}: holds no template. Write one per line, such as 'a photo of a {{}}.'.")
    return tuple(lines)
