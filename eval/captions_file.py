"""A file of captions for the pictures of a shard set, as JSON lines: read and checked, free of torch."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import ConfigError, DataError
from core.shard_set import ShardSet

_BY = ("key", "image_id")


def read_captions(path: Path, shard_set: ShardSet) -> dict[int, list[str]]:
    """The captions that a file gives to samples of the set: sample number -> captions, in the set's order.

    Args:
        path: JSON lines, each with `key` or `image_id` (of `shardclip preview`), and `captions` (a list) or `caption`.

    Raises:
        ConfigError: there is no such file.
        DataError: a line is no such object, names no sample of the set or several images, or has no caption; or nothing
            is in the file.
    """
    if not path.is_file():
        raise ConfigError(f"captions: {path} is missing. Name a file of JSON lines with image_id and captions.")
    lines = [
        (number, line)
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1)  # no other ends a line
        if line.strip()
    ]
    parsed = [_parsed(line, f"{path}, line {number}") for number, line in lines]
    if not parsed:
        raise DataError(f"{path}: is empty. Write a line for each picture, with image_id and captions.")
    sample_of = _samples_by(shard_set, {by for by, _, _ in parsed})
    found: dict[int, list[str]] = {}
    for (number, _), (by, name, captions) in zip(lines, parsed, strict=True):
        if (by, name) not in sample_of:
            raise DataError(f"{path}, line {number}: no sample of {' + '.join(shard_set.urls)} has {by} '{name}'.")
        first, another = sample_of[by, name]
        if another is not None:
            raise DataError(
                f"{path}, line {number}: different images have {by} '{name}': {shard_set.describe(first)}, "
                f"{shard_set.describe(another)}. Name pictures by {_BY[by == _BY[0]]}, or evaluate the sets one by one."
            )
        found.setdefault(first, []).extend(captions)
    return dict(sorted(found.items()))


def captions_identity(path: Path) -> str:
    """What figures from a captions file are known by: its name, and the beginning of its sha256."""
    return f"{path.name} (sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:16]})"


def _parsed(line: str, where: str) -> tuple[str, str, list[str]]:
    """What a line names a sample by, the name, and the captions."""
    try:
        values: Any = json.loads(line)
    except ValueError:
        values = None
    by = next((name for name in _BY if isinstance(values, dict) and name in values), None)
    if by is None:
        raise DataError(
            f'{where}: is no JSON object with key or image_id. Write {{"image_id": "...", "captions": []}}.'
        )
    given = values.get("captions", values.get("caption"))
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise DataError(f'{where}: has no captions. Write "captions": ["a dog on a beach"].')
    return by, str(values[by]), [" ".join(text.split()) for text in texts]


def _samples_by(shard_set: ShardSet, wanted: set[str]) -> dict[tuple[str, str], tuple[int, int | None]]:
    """What each sample is named by -> the first sample of that name, and one that shows another image, if any does."""
    found: dict[tuple[str, str], tuple[int, int | None]] = {}
    image_ids = shard_set.image_ids(np.arange(len(shard_set))).tolist()
    for sample, image in enumerate(image_ids):
        names = [("key", shard_set.key(sample))] if "key" in wanted else []
        if "image_id" in wanted and (image_id := shard_set.info(sample).get("image_id")) is not None:
            names.append(("image_id", str(image_id)))
        for name in names:
            first, another = found.setdefault(name, (sample, None))
            if another is None and image_ids[first] != image:
                found[name] = first, sample
    return found
