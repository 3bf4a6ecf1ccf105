"""Reads Flickr8k: Kaggle's captions.txt or the tab-separated Flickr8k.token.txt, recognised by what they hold.

Hodosh, Young and Hockenmaier 2013.
"""

import csv
import io
import re
from collections.abc import Collection
from pathlib import PurePosixPath

from core.errors import DataError
from core.storage import join
from shard_builder.readers.files import present_files, read_text, require_folder
from shard_builder.records import ReadResult, Record, Skip, clean_captions

SOURCE = "flickr8k"
_TOKEN_LINE = re.compile(r"(?P<name>[^\t]+)#(?P<number>\d+)\t(?P<caption>.*)")


def read_flickr8k(split: str, *, images: str, captions: str, names: str | None = None) -> ReadResult:
    """The captioned images, ordered by file name.

    Args:
        split: names the split only; `names` chooses the images.
        images: folder of the photos.
        captions: captions.txt or Flickr8k.token.txt.
        names: list of the split's file names, one per line (Flickr_8k.trainImages.txt, or your own); without it, every
            captioned image.

    Raises:
        DataError: a listed name has no captions.
    """
    require_folder(images, "images")
    captions_by_name = _read_captions(captions)
    wanted = captions_by_name.keys() if names is None else _read_names(names, captions, captions_by_name)
    paths = {name: join(images, name) for name in sorted(wanted)}
    present = present_files(paths.values())
    records, skipped = [], []
    for name, path in paths.items():
        own = clean_captions(captions_by_name.get(name, ()))
        if path not in present:
            # Flickr8k.token.txt names one file that does not exist (2258277193_586949ec62.jpg.1): it ends here.
            skipped.append(Skip(name, SOURCE, "missing_image", path))
        elif not own:
            skipped.append(Skip(name, SOURCE, "no_captions", f"{captions} has no caption for {name}"))
        else:
            records.append(Record(name, SOURCE, path, own))
    return ReadResult(tuple(records), tuple(skipped))


def _read_captions(url: str) -> dict[str, list[str]]:
    text = read_text(url, "captions")
    first = next((line for line in text.splitlines() if line.strip()), "")
    if [field.strip().lower() for field in first.split(",")] == ["image", "caption"]:
        captions = _parse_kaggle(url, text)
    elif _TOKEN_LINE.fullmatch(first):
        captions = _parse_token(url, text)
    else:
        raise DataError(
            f"{url}: begins with neither Kaggle's header 'image,caption' nor a line 'name.jpg#0<tab>caption'. "
            "Set source.captions to captions.txt or Flickr8k.token.txt."
        )
    if not captions:
        raise DataError(f"{url}: holds no captions. Fetch the file again.")
    return captions


def _parse_kaggle(url: str, text: str) -> dict[str, list[str]]:
    rows = csv.reader(io.StringIO(text.lstrip(), newline=""), strict=True)
    captions: dict[str, list[str]] = {}
    try:
        next(rows)  # the header
        for row in rows:
            if not row:
                continue
            name, *caption = row
            if not caption:
                raise DataError(f"{url}:{rows.line_num}: '{row[0]}' is not 'image,caption'. Mend the line.")
            captions.setdefault(name.strip(), []).append(",".join(caption))  # a caption with commas left unquoted
    except csv.Error as error:
        raise DataError(f"{url}:{rows.line_num}: {error}. Mend the quotes of this line.") from None
    return captions


def _parse_token(url: str, text: str) -> dict[str, list[str]]:
    numbered: dict[str, list[tuple[int, str]]] = {}
    for line_number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        match = _TOKEN_LINE.fullmatch(line.rstrip("\r"))
        if match is None:
            raise DataError(f"{url}:{line_number}: '{line[:60]}' is not 'name.jpg#0<tab>caption'. Mend the line.")
        numbered.setdefault(match["name"].strip(), []).append((int(match["number"]), match["caption"]))
    return {name: [caption for _, caption in sorted(own)] for name, own in numbered.items()}


def _read_names(url: str, captions: str, known: Collection[str]) -> set[str]:
    names = {PurePosixPath(line.strip()).name for line in read_text(url, "names").splitlines() if line.strip()}
    if not names:
        raise DataError(f"{url}: lists no images. Set source.names to a list such as Flickr_8k.trainImages.txt.")
    unknown = sorted(names.difference(known))
    if unknown:
        shown = ", ".join(unknown[:3]) + (", ..." if len(unknown) > 3 else "")
        raise DataError(
            f"{url}: {len(unknown):,} of its {len(names):,} names have no captions in {captions} ({shown}). Write "
            f"names as they stand there, such as {min(known)}, one per line."
        )
    return names
