"""The learning rate of a step."""

from __future__ import annotations

import math

from core.errors import ConfigError
from trainer.optim.config import OptimConfig


def lr_at(step: int, total_steps: int, config: OptimConfig) -> float:
    """Linear warm-up to `config.lr`, then half a cosine down to `config.min_lr_ratio` of it (Loshchilov 2017).

    Args:
        step: steps done before this one, 0 to `total_steps - 1`.

    Raises:
        ConfigError: the run would end before it is warm.
    """
    if config.warmup_steps >= total_steps:
        raise ConfigError(
            f"optim.warmup_steps is {config.warmup_steps}, but the run has {total_steps} steps: it would never reach "
            f"optim.lr. Set it to about {total_steps // 10}, or train for longer."
        )
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / (total_steps - config.warmup_steps)
    cosine = (1 + math.cos(math.pi * progress)) / 2
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * cosine)
