"""What a kind of column is: a function from a set to a plan. Who adds a kind reads this file (and docs/columns.md).

The function has typed options, and `name`, all with defaults. It finds out cheaply what the column will be, and raises
what would go wrong; the work itself waits in `make`, until it is known that no equal column is there:

    def length_column(work: ColumnWork, name: str = "") -> ColumnPlan:
        def make() -> ColumnValues:
            return ColumnValues(by_shard(work.shard_set, lengths_of(work.shard_set)))

        return ColumnPlan(name or "length", "length", "sample", "<i4", (), origin={"of": "captions"}, make=make)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from core.columns import ColumnValues, Per, ShardValues
from core.shard_set import ShardSet

# (unit, how many there are) -> a bar; what it gives is told how many are done
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True)
class ColumnWork:
    """What a kind is given.

    Attributes:
        shard_set: the set that gets the column.
        together: all sets of the command, this one included: what their columns share is decided over all of them.
        cache_dir: for caption embeddings and files of remote sets.
    """

    shard_set: ShardSet
    together: Sequence[ShardSet]
    cache_dir: Path
    progress: Progress

    @property
    def url(self) -> str:
        """The set's folder or URL."""
        return self.shard_set.urls[0]


@dataclass(frozen=True)
class ColumnPlan:
    """A column before its values; attributes as in `ColumnHead`.

    Attributes:
        origin: every option that decides the values stands in it: columns of equal origin are equal.
        make: does the work.
        notes: sentences for people.
    """

    name: str
    kind: str
    per: Per
    dtype: str
    shape: tuple[int, ...]
    origin: Mapping[str, Any]
    make: Callable[[], ColumnValues]
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())


ColumnKind = Callable[..., ColumnPlan]  # (work, **options)


def by_shard(shard_set: ShardSet, values: np.ndarray) -> Iterator[ShardValues]:
    """Values of all samples `(num_samples, ...)`, cut into the set's shards."""
    ends = np.cumsum(shard_set.shard_sizes)
    for start, end in zip(ends - shard_set.shard_sizes, ends):
        yield ShardValues(values[start:end])


def captions_by_shard(work: ColumnWork, shard_set: ShardSet) -> list[list[list[str]]]:
    """The captions of every sample of every shard."""
    shards: list[list[list[str]]] = []
    with work.progress("samples", len(shard_set)) as show:
        for size in shard_set.shard_sizes.tolist():
            first = sum(map(len, shards))
            shards.append([shard_set.captions(sample) for sample in range(first, first + size)])
            show(first + size)
    return shards
