"""Captions made from class names: all samples of a class share them, so each is a right answer for all of these."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from core.columns import LABELS, column_names, load_head
from core.errors import ManifestError
from core.manifest import OF_CLASSES
from core.shard_index import image_id_of

CLASS_NAMES = "class names"  # by which answers are right where captions were made from them
OWN_CAPTIONS = "own captions"  # by which they are right elsewhere

if TYPE_CHECKING:
    from core.column_values import Column
    from core.shard_set import ShardSet


def answer_ids(shard_set: ShardSet, samples: np.ndarray) -> np.ndarray:
    """`(B,)` uint64: equal where one sample's captions are right for the other. Reads no tar.

    So it is where samples show one image and, in sets whose captions were made from class names, have one class.
    """
    ids = shard_set.image_ids(samples)
    ends = np.cumsum(shard_set.set_sizes)
    sets = np.searchsorted(ends, samples, side="right")
    for number, labels in shard_set.class_captions.items():
        own = np.flatnonzero(sets == number)
        classes = labels.rows(samples[own] - (ends[number] - shard_set.set_sizes[number]))
        ids[own] = np.where(classes >= 0, _ids_of(labels.classes)[classes], ids[own])
    return ids


def answers_by(shard_set: ShardSet) -> str:
    """What a set's right answers go by: `CLASS_NAMES` or `OWN_CAPTIONS`. Scores by one are no match for the other."""
    return CLASS_NAMES if shard_set.class_captions else OWN_CAPTIONS


def labels_of_class_captions(shard_set: ShardSet) -> dict[int, Column]:
    """Of the sets whose captions were made from class names: number of the set -> the column of its own labels.

    Raises:
        ManifestError: such a set lacks the column.
    """
    numbers = [number for number in range(len(shard_set.urls)) if _is_of_classes(shard_set, number)]
    return {number: _own_labels(shard_set, number) for number in numbers}


@lru_cache
def _ids_of(classes: tuple[str, ...]) -> np.ndarray:
    """`(K,)` uint64, the same for a name in every set."""
    return np.array([image_id_of("class", name) for name in classes], dtype=np.uint64)


def _is_of_classes(shard_set: ShardSet, number: int) -> bool:
    manifest = shard_set.manifests[number]
    if manifest.captions or not manifest.classes:
        return manifest.captions == OF_CLASSES
    first = int(np.sum(shard_set.set_sizes[:number]))  # of before manifests said so: each sample names its reader
    return str(shard_set.info(first).get("source", "")).startswith("image_folder:")


def _own_labels(shard_set: ShardSet, number: int) -> Column:
    url = shard_set.urls[number]
    if LABELS not in column_names(url) or load_head(url, LABELS).origin.get("from") != "json":
        raise ManifestError(
            f"{url}: its captions were made from class names, but no column '{LABELS}' made from them says which "
            f"sample has which. Delete that column if it is there, and run `shardclip column labels {url}`."
        )
    return shard_set.alone(number).column(LABELS)
