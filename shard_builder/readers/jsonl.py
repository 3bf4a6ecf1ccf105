"""Reads JSON lines: {"image": "photos/1.jpg", "captions": ["...", "..."], "label": "dog"}, one line per image.

Keys: image; captions or caption; optional label, split and id. Paths are relative to the file.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from core.errors import DataError, did_you_mean
from core.seeding import derive_seed
from core.storage import join
from shard_builder.readers.files import present_files, read_text
from shard_builder.records import ReadResult, Record, Skip, clean_captions

KEYS = ("image", "captions", "caption", "label", "split", "id")
SPLIT_SHARES = {"train": 0.70, "val": 0.15, "test": 0.15}


def read_jsonl(split: str, *, file: str, seed: int = 0) -> ReadResult:
    """The images of one split, ordered by id; lines about the same image are merged, captions in file order.

    Args:
        split: one that the lines name; where no line does, one of `SPLIT_SHARES`.
        file: the .jsonl file.
        seed: of the split by image, used where no line names one. An image's split depends on its id and the
            seed alone, so it stays when lines are added, dropped or shuffled.
    """
    source = f"jsonl:{PurePosixPath(file).stem}"  # ids of two files must not meet when their sets are joined
    chosen = _of_split(file, _read_images(file), split, seed)
    present = present_files(image.url for image in chosen)
    records, skipped = [], []
    for image in sorted(chosen, key=lambda image: image.image_id):
        captions = clean_captions(image.captions)
        if image.url not in present:
            skipped.append(Skip(image.image_id, source, "missing_image", image.url))
        elif not captions:
            skipped.append(Skip(image.image_id, source, "no_captions", f"{file}:{image.line_number}"))
        else:
            records.append(Record(image.image_id, source, image.url, captions, image.label))
    classes = sorted({record.label for record in records if record.label is not None})
    return ReadResult(tuple(records), tuple(skipped), tuple(classes))


@dataclass
class _Image:
    """All lines about one image, while they are merged."""

    image: str  # as written in the file
    url: str
    line_number: int  # of the first line
    captions: list[str] = field(default_factory=list)
    id: str | None = None
    label: str | None = None
    split: str | None = None

    @property
    def image_id(self) -> str:
        return self.id if self.id is not None else self.image


def _read_images(file: str) -> list[_Image]:
    images: dict[str, _Image] = {}
    for line_number, line in enumerate(read_text(file, "file").split("\n"), 1):
        if line.strip():
            where = f"{file}:{line_number}"
            entry = _parse_line(where, line)
            url = _url(file, entry["image"])
            image = images.setdefault(url, _Image(entry["image"], url, line_number))
            _merge(image, entry, where)
    if not images:
        raise DataError(f'{file}: holds no lines. Write one line {{"image": ..., "captions": [...]}} per image.')
    _check_ids(file, images.values())
    return list(images.values())


def _parse_line(where: str, line: str) -> dict:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: is not JSON ({error.msg}, column {error.colno}). Mend the line.") from None
    if not isinstance(entry, dict):
        raise DataError(f'{where}: is not an object. Write {{"image": ..., "captions": [...]}}.')
    for key in entry:
        if key not in KEYS:
            raise DataError(f"{where}: unknown key '{key}'.{did_you_mean(key, KEYS)}")
    if not isinstance(entry.get("image"), str) or not entry["image"]:
        raise DataError(f"{where}: 'image' is missing or not a path. Give the path of the image, relative to the file.")
    if ("captions" in entry) == ("caption" in entry):
        raise DataError(f"{where}: needs either 'captions' (a list of texts) or 'caption' (one text).")
    captions = entry["captions"] if "captions" in entry else [entry["caption"]]
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise DataError(f"{where}: 'captions' is a list of texts and 'caption' is one text. Mend the line.")
    if entry.get("split") is not None and not isinstance(entry["split"], str):
        raise DataError(f"{where}: 'split' is {entry['split']!r}. Write its name, such as \"train\".")
    return entry


def _merge(image: _Image, entry: dict, where: str) -> None:
    image.captions += entry["captions"] if "captions" in entry else [entry["caption"]]
    for key in ("id", "label", "split"):
        if entry.get(key) is None:
            continue
        value, known = str(entry[key]), getattr(image, key)
        if known not in (None, value):
            raise DataError(
                f"{where}: '{image.image}' has {key} '{value}' here, '{known}' on an earlier line. Give it one {key}."
            )
        setattr(image, key, value)


def _url(file: str, image: str) -> str:
    if "://" in image or image.startswith("/"):
        return image
    folder, slash, _ = file.rpartition("/")
    return join(folder, image) if slash else image


def _check_ids(file: str, images: Iterable[_Image]) -> None:
    first: dict[str, _Image] = {}
    for image in images:
        other = first.setdefault(image.image_id, image)
        if other is not image:
            raise DataError(
                f"{file}:{image.line_number}: id '{image.image_id}' also belongs to '{other.image}' "
                f"(line {other.line_number}). Give each image its own id."
            )


def _of_split(file: str, images: list[_Image], split: str, seed: int) -> list[_Image]:
    without = [image for image in images if image.split is None]
    if len(without) == len(images):
        known = list(SPLIT_SHARES)
        chosen = [image for image in images if _drawn_split(image.image_id, seed) == split]
    elif without:
        raise DataError(
            f"{file}:{without[0].line_number}: '{without[0].image}' has no split, other lines have one. "
            "Give every image a split, or none."
        )
    else:
        known = sorted({str(image.split) for image in images})
        chosen = [image for image in images if image.split == split]
    if split not in known:
        raise DataError(f"{file}: has no split '{split}'.{did_you_mean(split, known)}")
    if not chosen:
        raise DataError(f"{file}: no image fell into split '{split}' ({len(images)} in all). Give the lines a split.")
    return chosen


def _drawn_split(image_id: str, seed: int) -> str:
    point = derive_seed("split", seed, image_id) / 2**63
    for name, share in SPLIT_SHARES.items():
        if point < share:
            return name
        point -= share
    return name  # the shares add up to 1 but for rounding
