"""Epochs for samplers: sets, shards and columns of numbers, without a file."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainer.samplers.epoch import Epoch


def epoch_of(
    global_batch_size: int,
    *,
    shard_sizes: Sequence[int] | np.ndarray = (),
    set_sizes: Sequence[int] | np.ndarray = (),
    seed: int = 0,
    number: int = 0,
    **columns: np.ndarray,
) -> Epoch:
    """An epoch over so many samples: as many as the shards, the sets, or the rows of the first column have."""
    sizes = [int(np.sum(shard_sizes)), int(np.sum(set_sizes)), *map(len, columns.values())]
    num_samples = next(size for size in sizes if size)
    steps = num_samples // global_batch_size
    one = np.array([num_samples], dtype=np.int64)
    sets, shards = (np.asarray(s, dtype=np.int64) if len(s) else one for s in (set_sizes, shard_sizes))
    return Epoch(number, seed, steps, global_batch_size, num_samples, sets, shards, columns.__getitem__)
