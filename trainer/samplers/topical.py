"""Some batches from one topic each, so that negatives are hard; the others from everything."""

from __future__ import annotations

import math

import numpy as np

from core.errors import ConfigError
from core.seeding import uniform as uniform_numbers
from trainer.samplers.epoch import Cycle, Epoch


def topical(epoch: Epoch, p_topical: float = 0.5, temperature: float = 1.0, column: str = "topics") -> np.ndarray:
    """A share of the global batches comes from a single topic, drawn by size ** (1 / temperature); the rest is uniform.

    Both shares are kept exactly over an epoch: `p_topical` of the steps, to within one, and each topic's part of them,
    to within one (systematic sampling). A topic that is smaller than the batch repeats its samples (`draws_of`).

    Args:
        p_topical: share of the topical batches, 0 to 1.
        temperature: 1 draws topics by their size, more evens them out, `inf` draws all alike.
        column: of the topics; samples without one (-1) come in uniform batches only.

    Raises:
        ConfigError: an option out of its range, or no sample has a topic.
    """
    if not 0 <= p_topical <= 1:
        raise ConfigError(f"data.sampler topical: p_topical is {p_topical}: it is a share, from 0 to 1.")
    if not temperature > 0:
        raise ConfigError(f"data.sampler topical: temperature is {temperature}: give a number above 0, or inf.")
    topics = epoch.column(column)
    members = [np.flatnonzero(topics == topic) for topic in np.unique(topics[topics >= 0])]
    if not members:
        raise ConfigError(f"data.sampler topical: no sample has a topic in column '{column}'. Make it again.")
    chosen = _topic_of_steps(epoch, np.array([len(own) for own in members], dtype=float), p_topical, temperature)
    everything = Cycle(epoch, epoch.num_samples, "everything")
    within = [Cycle(epoch, len(own), "topic", number) for number, own in enumerate(members)]
    size = epoch.global_batch_size
    batches = [everything.take(size) if t < 0 else members[t][within[t].take(size)] for t in chosen]
    return np.concatenate(batches)


def _topic_of_steps(epoch: Epoch, sizes: np.ndarray, p_topical: float, temperature: float) -> np.ndarray:
    """The topic of each step, `(steps,)` int64; -1: uniform."""
    chance = uniform_numbers(epoch.seed, epoch.number, np.arange(2), "topics", 1)[:, 0].astype(np.float64)
    num_topical = min(epoch.steps, math.floor(p_topical * epoch.steps + chance[0]))
    weights = (sizes / sizes.max()) ** (1 / temperature)
    ends = np.cumsum(weights / weights.sum())
    marks = (np.arange(num_topical) + chance[1]) / max(num_topical, 1)
    drawn = np.searchsorted(ends, marks, side="right").clip(max=len(sizes) - 1)
    topics = np.full(epoch.steps, -1, dtype=np.int64)
    topics[epoch.permutation(epoch.steps, "topical steps")[:num_topical]] = drawn
    return topics
