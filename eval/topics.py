"""Which topic each sample of a shard set has, where `shardclip column topics` gave it some."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from core.column_values import centroids_sha256
from core.columns import TOPICS, ColumnHead, column_names
from core.shard_set import ShardSet
from eval.labels import Labels


def topics_of(shard_set: ShardSet) -> Labels | None:
    """The column `topics` as classes, each named by the caption nearest to its middle; None where a set lacks it."""
    if not all(TOPICS in column_names(url) for url in shard_set.urls):
        return None
    column = shard_set.column(TOPICS)
    if column.head.kind != TOPICS:
        return None
    distinct: dict[str, ColumnHead] = {}  # sets around the same centroids share topics; those of others are numbered on
    for number, head in enumerate(column.heads):
        distinct.setdefault(centroids_sha256(head) or f"set {number}", head)
    names = [name for head in distinct.values() for name in _names(head)]
    named = tuple(f"topic {number}{name}" for number, name in enumerate(names))
    return Labels(column.all_rows().astype(np.int64), named)


def _names(head: ColumnHead) -> Iterator[str]:
    for topic in head.figures["topics"]:
        yield f": {topic['captions'][0]}" if topic["captions"] else ""
