"""What kinds of columns share: values and captions, cut into shards in the set's order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from shard_sets import make_shard_set

from core.column_kind import ColumnWork, by_shard, captions_by_shard
from core.shard_set import ShardSet


def test_values_are_cut_as_the_set_is(tmp_path: Path) -> None:
    shard_set = ShardSet.open(make_shard_set(tmp_path / "set", 23, samples_per_shard=9))
    parts = list(by_shard(shard_set, np.arange(46).reshape(23, 2)))
    assert [len(part.values) for part in parts] == [9, 9, 5] and all(part.counts is None for part in parts)
    assert np.concatenate([part.values for part in parts]).flatten().tolist() == list(range(46))


def test_captions_come_shard_by_shard_and_progress_is_shown(tmp_path: Path) -> None:
    shown: list[tuple[str, int]] = []

    @contextmanager
    def progress(unit: str, total: int) -> Iterator[Callable[[int], None]]:
        yield lambda done: shown.append((f"{unit} of {total}", done))

    counts = [1 + n % 3 for n in range(23)]
    shard_set = ShardSet.open(make_shard_set(tmp_path / "set", 23, samples_per_shard=9, num_captions=counts))
    work = ColumnWork(shard_set, (shard_set,), tmp_path / "cache", progress)
    shards = captions_by_shard(work, shard_set)
    assert [len(shard) for shard in shards] == [9, 9, 5] and work.url == str(tmp_path / "set")
    flat = [captions for shard in shards for captions in shard]
    assert flat == [[f"caption {c} of image {n}" for c in range(counts[n])] for n in range(23)]
    assert shown == [("samples of 23", 9), ("samples of 23", 18), ("samples of 23", 23)]
