"""From an epoch's order to each rank's share of it: pure functions, so that every rank agrees without talking."""

from __future__ import annotations

import numpy as np

from core.errors import ConfigError


def steps_per_epoch(num_samples: int, global_batch_size: int, world_size: int) -> int:
    """Whole global batches in an epoch, `num_samples // global_batch_size`, whichever sampler fills them.

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


def expect_whole_chunks(global_batch_size: int, world_size: int, accumulate: int) -> None:
    """Raise ConfigError where a process's share of a batch cannot be cut into `accumulate` equal pieces."""
    own = global_batch_size // world_size
    if own % accumulate or own // accumulate < 1:
        raise ConfigError(
            f"accumulate is {accumulate}: a process has {own} of the {global_batch_size} pairs, which cannot be cut "
            "into that many equal pieces. Choose a divisor."
        )


def step_slice(order: np.ndarray, step: int, global_batch_size: int, rank: int, world_size: int) -> np.ndarray:
    """This rank's part of one step: its contiguous part of positions `[step * G, (step + 1) * G)`."""
    per_rank = global_batch_size // world_size
    start = step * global_batch_size + rank * per_rank
    return order[start : start + per_rank]


def rank_slice(num_samples: int, rank: int, world_size: int) -> np.ndarray:
    """This rank's samples in evaluation: contiguous, each sample with exactly one rank, counts differ by at most 1."""
    return np.arange(num_samples * rank // world_size, num_samples * (rank + 1) // world_size)
