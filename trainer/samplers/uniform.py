"""Every sample at most once an epoch, in random order."""

from __future__ import annotations

import numpy as np

from core.errors import ConfigError
from core.seeding import permutation
from trainer.samplers.epoch import Epoch


def uniform(epoch: Epoch, window_shards: int = 0) -> np.ndarray:
    """A permutation; what is left over after the last whole batch, a different rest each epoch, is dropped.

    Args:
        window_shards: 0 shuffles over everything; more: shards are drawn in random order in groups of that many and
            samples shuffled within each group, so that a slow or remote disk is read group by group.
    """
    if window_shards < 0:
        raise ConfigError(f"window_shards is {window_shards}: 0 shuffles over everything, more is a number of shards.")
    return _order(epoch, window_shards)[: epoch.steps * epoch.global_batch_size]


def _order(epoch: Epoch, window_shards: int) -> np.ndarray:
    if not window_shards:
        return permutation(epoch.num_samples, "samples", epoch.seed, epoch.number)
    sizes = epoch.shard_sizes
    starts = np.cumsum(sizes) - sizes
    shards = permutation(len(sizes), "shards", epoch.seed, epoch.number)
    windows = []
    for first in range(0, len(shards), window_shards):
        members = shards[first : first + window_shards]
        samples = np.concatenate([np.arange(starts[s], starts[s] + sizes[s]) for s in members])
        windows.append(samples[permutation(len(samples), "window", epoch.seed, epoch.number, first)])
    return np.concatenate(windows)
