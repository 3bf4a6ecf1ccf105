"""Several shard sets in stated shares, whatever their sizes."""

from __future__ import annotations

import numpy as np

from core.errors import ConfigError
from trainer.samplers.epoch import Cycle, Epoch


def mix(epoch: Epoch, weights: tuple[float, ...]) -> np.ndarray:
    """Draws from each set by its weight, spread evenly over the epoch.

    A set's share of an epoch's draws is its weight to within one draw; of every global batch, to within as many draws
    as there are sets. Within a set all samples come equally often, to within one; a small set with a large weight
    repeats its samples (`draws_of`).

    Args:
        weights: one for each set of `data.train`, in that order; only their ratios count. 0 leaves a set out.

    Raises:
        ConfigError: another number of weights than sets, or weights that are no shares.
    """
    sets = len(epoch.set_sizes)
    if len(weights) != sets:
        raise ConfigError(
            f"data.sampler mix: weights has {len(weights)} numbers, data.train {sets} sets. Give one each."
        )
    if min(weights) < 0 or not 0 < sum(weights) < np.inf:
        raise ConfigError(f"data.sampler mix: weights are {weights}: give numbers of 0 or more, not all of them 0.")
    total = epoch.steps * epoch.global_batch_size
    counts = _shares(np.array(weights) / sum(weights), total)
    if any(count and not size for count, size in zip(counts, epoch.set_sizes)):
        raise ConfigError("data.sampler mix: a set with a weight above 0 has no samples. Give it 0.")
    set_of_draw = _spread(counts)
    order = np.empty(total, dtype=np.int64)
    first = 0
    for number, size in enumerate(epoch.set_sizes.tolist()):
        order[set_of_draw == number] = first + Cycle(epoch, size, "set", number).take(int(counts[number]))
        first += size
    batches = order.reshape(epoch.steps, epoch.global_batch_size)
    return np.concatenate([epoch.shuffled(batch, step) for step, batch in enumerate(batches)])


def _shares(shares: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers that add up to `total`, each within one of its share (largest remainders)."""
    exact = shares * total
    counts = np.floor(exact).astype(np.int64)
    largest = np.argsort(counts - exact, kind="stable")
    counts[largest[: total - int(counts.sum())]] += 1
    return counts


def _spread(counts: np.ndarray) -> np.ndarray:
    """The set of each draw, `(sum of counts,)`: each set's draws at equal distances from the first to the last."""
    ideal = np.concatenate([(np.arange(count) + 0.5) / count for count in counts if count])
    numbers = np.repeat(np.arange(len(counts)), counts)
    return numbers[np.argsort(ideal, kind="stable")]
