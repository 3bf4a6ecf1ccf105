"""What a sampler is given, and what becomes of its order: one value each. Who adds a sampler reads this file.

A sampler is a pure function `(epoch: Epoch, option=..., ...) -> (steps * global_batch_size,)` sample numbers, int64:
positions `[t * G, (t + 1) * G)` are global batch t. Equal arguments give equal orders, on any rank, node and worker.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from core.seeding import permutation


@dataclass(frozen=True)
class Epoch:
    """One epoch to be filled.

    Attributes:
        number: of the epoch; with `seed` the key of everything that is drawn (`core.seeding`).
        steps: whole global batches in it.
        num_samples: in all shard sets, numbered 0 to num_samples - 1.
        set_sizes: `(sets,)` samples of each shard set, in the order of their numbers.
        shard_sizes: `(shards,)` samples of each shard, likewise.
        column: gives a column of one whole number per sample by its name, `(num_samples,)`: labels, topics; -1 is none.
    """

    number: int
    seed: int
    steps: int
    global_batch_size: int
    num_samples: int
    set_sizes: np.ndarray
    shard_sizes: np.ndarray
    column: Callable[[str], np.ndarray]

    def permutation(self, n: int, *key: int | str) -> np.ndarray:
        """A permutation of 0..n-1 of this epoch, `(n,)` int64; one for each `key`."""
        return permutation(n, *key, self.seed, self.number)

    def shuffled(self, batch: np.ndarray, step: int) -> np.ndarray:
        """A global batch in random order, so that every rank's slice is a fair share of it."""
        return batch[self.permutation(len(batch), "batch", step)]


class Cycle:
    """Numbers 0..n-1 without end, permutation after permutation: at any time, none leads by more than one.

    Within one take a number repeats only if there are fewer than are taken.
    """

    def __init__(self, epoch: Epoch, n: int, *key: int | str) -> None:
        self._epoch, self._n, self._key = epoch, n, key
        self._turn = 0
        self._rest = np.empty(0, dtype=np.int64)

    def take(self, count: int) -> np.ndarray:
        """The next numbers, `(count,)` int64."""
        parts, missing = [self._rest[:count]], count - len(self._rest[:count])
        self._rest = self._rest[count:]
        while missing:
            following = self._epoch.permutation(self._n, *self._key, self._turn)
            if count - missing < self._n:  # what this take has already comes last
                is_late = np.isin(following, np.concatenate(parts))
                following = np.concatenate([following[~is_late], following[is_late]])
            parts.append(following[:missing])
            self._rest = following[missing:]
            missing -= len(parts[-1])
            self._turn += 1
        return np.concatenate(parts)


def draws_of(order: np.ndarray, num_samples: int) -> np.ndarray:
    """What each position's random choices are keyed by: `sample + k * num_samples` for the sample's k-th occurrence.

    A repeat is not the same picture with the same caption again; occurrence 0 has the sample's own number.

    Returns:
        `(len(order),)` int64, all distinct.
    """
    counts = np.bincount(order, minlength=num_samples)
    if len(counts) == 0 or counts.max() <= 1:
        return order
    by_sample = np.argsort(order, kind="stable")
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    occurrence = np.empty(len(order), dtype=np.int64)
    occurrence[by_sample] = np.arange(len(order)) - starts
    return order + occurrence * num_samples
