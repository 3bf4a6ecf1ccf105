"""What a sampler gives for an epoch of a shard set."""

from __future__ import annotations

import numpy as np

from core import parts
from core.config import Choice
from core.errors import ConfigError
from core.shard_set import ShardSet
from trainer.samplers import SAMPLERS
from trainer.samplers.epoch import Epoch


def sampled(
    sampler: Choice, shard_set: ShardSet, global_batch_size: int, steps: int, seed: int, epoch: int
) -> np.ndarray:
    """What a sampler gives for an epoch of a shard set, `(steps * global_batch_size,)` sample numbers.

    Raises:
        ConfigError: an option does not fit the data.
    """

    def numbers(name: str) -> np.ndarray:
        column = shard_set.column(name)
        if column.head.per != "sample" or column.head.shape or np.dtype(column.head.dtype).kind != "i":
            raise ConfigError(
                f"data.sampler {sampler.name}: column '{name}' is {column.head.kind}, a number for each sample is "
                "needed. Name a column of labels or topics."
            )
        return column.all_rows()

    given = Epoch(
        epoch, seed, steps, global_batch_size, len(shard_set), shard_set.set_sizes, shard_set.shard_sizes, numbers
    )
    order: np.ndarray = parts.build(SAMPLERS, sampler, "data.sampler", epoch=given)
    assert order.shape == (steps * global_batch_size,), f"{sampler.name} gave {order.shape}"
    return order
