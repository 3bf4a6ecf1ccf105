"""An evaluation's own captions for the pictures of a shard set, from a file of JSON lines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import ConfigError, DataError
from core.shard_set import ShardSet
from eval.evaluations.zero_shot import EmbedTexts
from eval.features import Extracted, Pictures
from eval.metrics import FeatureSet

_BY = ("key", "image_id")


def read_captions(path: Path, shard_set: ShardSet) -> dict[int, list[str]]:
    """The captions that a file gives to samples of the set: sample number -> captions, in the set's order.

    Args:
        path: JSON lines, each with `key` or `image_id` (of `shardclip preview`), and `captions` (a list) or `caption`.

    Raises:
        ConfigError: there is no such file.
        DataError: a line is no such object, names no sample of the set, or has no caption; or nothing is in the file.
    """
    if not path.is_file():
        raise ConfigError(f"captions: {path} is missing. Name a file of JSON lines with image_id and captions.")
    lines = [
        (number, line)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
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
        found.setdefault(sample_of[by, name], []).extend(captions)
    return dict(sorted(found.items()))


def with_captions(
    pictures: Pictures, shard_set: ShardSet, captions: Mapping[int, list[str]], embed: EmbedTexts, logit_scale: float
) -> Extracted:
    """Features of those pictures that have captions, with these; samples that show one image are one, with all of them.

    Args:
        captions: by sample number.
        embed: by the encoder that the checkpoint was trained against.
    """
    ids = dict(zip(shard_set.image_ids(pictures.samples).tolist(), range(len(pictures.samples)), strict=True))
    samples = np.array(list(captions))
    row_of_sample = np.array([ids[i] for i in shard_set.image_ids(samples).tolist()])
    rows, image_of_sample = np.unique(row_of_sample, return_inverse=True)
    counts = np.array([len(own) for own in captions.values()])
    place = np.concatenate([np.arange(count) for count in counts])
    texts = embed([caption for own in captions.values() for caption in own]).astype(np.float32)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    features = FeatureSet(pictures.images[rows], texts, np.repeat(image_of_sample, counts))
    return Extracted(
        features, pictures.samples[rows], np.stack([np.repeat(samples, counts), place], axis=1), logit_scale
    )


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


def _samples_by(shard_set: ShardSet, wanted: set[str]) -> dict[tuple[str, str], int]:
    """What each sample is named by -> its number; of samples with one image id the first."""
    found: dict[tuple[str, str], int] = {}
    for sample in range(len(shard_set)):
        if "key" in wanted:
            found.setdefault(("key", shard_set.key(sample)), sample)
        if "image_id" in wanted and (image_id := shard_set.info(sample).get("image_id")) is not None:
            found.setdefault(("image_id", str(image_id)), sample)
    return found
