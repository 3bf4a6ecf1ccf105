"""Columns for tests: numbers, embeddings and tower outputs beside a shard set, published as the product does it."""

from __future__ import annotations

from typing import Any

import numpy as np

from core.columns import ColumnHead, ColumnValues, Per, ShardValues, publish_column
from core.manifest import load_manifest
from core.shard_set import ShardSet


def add_column(
    url: str,
    name: str,
    values: np.ndarray,
    *,
    counts: np.ndarray | None = None,
    classes: tuple[str, ...] = (),
    **origin: Any,
) -> ColumnHead:
    """Publish `values` of all samples, or with `counts` of all captions, as a column; its kind is its name's."""
    manifest = load_manifest(url)
    per: Per = "sample" if counts is None else "caption"
    head = ColumnHead(
        name=name,
        kind=name.partition(".")[0],
        per=per,
        dtype=values.dtype.str,
        shape=values.shape[1:],
        origin=origin,
        fingerprint=ShardSet.open(url).fingerprint,
        classes=classes,
    )
    ends = np.cumsum([shard.num_samples for shard in manifest.shards])[:-1]
    if counts is None:
        parts = [ShardValues(part) for part in np.split(values, ends)]
    else:
        of_shards = np.split(counts, ends)
        pieces = np.split(values, np.cumsum([own.sum() for own in of_shards])[:-1])
        parts = [ShardValues(piece, own) for piece, own in zip(pieces, of_shards)]
    return publish_column(url, head, [shard.name for shard in manifest.shards], ColumnValues(parts))
