"""Which samples make up which batch: pure functions, so that resume is exact and every rank agrees without talking."""

from __future__ import annotations

import numpy as np

from core.errors import ConfigError
from core.seeding import permutation


def epoch_order(
    num_samples: int, seed: int, epoch: int, shard_sizes: np.ndarray | None = None, window_shards: int = 0
) -> np.ndarray:
    """A permutation of the sample numbers, `(num_samples,)` int64.

    Args:
        shard_sizes: samples in each shard, in the order of their numbers; needed for windows only.
        window_shards: 0 shuffles everything; more: shards are drawn in random order in groups of that many and
            samples shuffled within each group, so that a slow or remote disk is read group by group.
    """
    if not window_shards:
        return permutation(num_samples, "samples", seed, epoch)
    assert shard_sizes is not None and shard_sizes.sum() == num_samples
    starts = np.cumsum(shard_sizes) - shard_sizes
    shards = permutation(len(shard_sizes), "shards", seed, epoch)
    windows = []
    for first in range(0, len(shards), window_shards):
        members = shards[first : first + window_shards]
        samples = np.concatenate([np.arange(starts[s], starts[s] + shard_sizes[s]) for s in members])
        windows.append(samples[permutation(len(samples), "window", seed, epoch, first)])
    return np.concatenate(windows)


def steps_per_epoch(num_samples: int, global_batch_size: int, world_size: int) -> int:
    """Whole global batches in an epoch; the rest, a different one each epoch, is dropped.

    Raises:
        ConfigError: not one whole batch, or one that the ranks cannot share equally.
    """
    if global_batch_size % world_size:
        nearest = max(1, round(global_batch_size / world_size)) * world_size
        raise ConfigError(
            f"global_batch_size is {global_batch_size}, which {world_size} processes cannot share equally. "
            f"Set it to {nearest}."
        )
    if global_batch_size > num_samples:
        raise ConfigError(
            f"global_batch_size is {global_batch_size}, the data set has {num_samples} samples: not one whole batch. "
            f"Set it to at most {num_samples // world_size * world_size}."
        )
    return num_samples // global_batch_size


def step_slice(order: np.ndarray, step: int, global_batch_size: int, rank: int, world_size: int) -> np.ndarray:
    """This rank's samples of one step: its contiguous part of positions `[step * G, (step + 1) * G)`."""
    per_rank = global_batch_size // world_size
    start = step * global_batch_size + rank * per_rank
    return order[start : start + per_rank]


def rank_slice(num_samples: int, rank: int, world_size: int) -> np.ndarray:
    """This rank's samples in evaluation: contiguous, each sample with exactly one rank, counts differ by at most 1."""
    return np.arange(num_samples * rank // world_size, num_samples * (rank + 1) // world_size)
