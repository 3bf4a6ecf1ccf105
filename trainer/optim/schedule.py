"""The learning rate of a step."""

from __future__ import annotations

from core.errors import ConfigError
from trainer.optim.config import OptimConfig


def lr_at(step: int, total_steps: int, config: OptimConfig) -> float:
    """Linear warm-up to `config.lr`, then as `config.schedule` says, down to `config.min_lr_ratio` of it; pure.

    Args:
        step: steps done before this one, 0 to `total_steps - 1`.

    Raises:
        ConfigError: the run would end before it is warm, or is too short for its schedule.
    """
    if config.warmup_steps >= total_steps:
        raise ConfigError(
            f"optim.warmup_steps is {config.warmup_steps}, but the run has {total_steps} steps: it would never reach "
            f"optim.lr. Set it to {total_steps - 1} at most (a tenth of the run is usual), or train for longer."
        )
    schedule, num_steps = config.schedule_part, total_steps - config.warmup_steps
    schedule.check(num_steps)
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    share = schedule.share(step - config.warmup_steps, num_steps)
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * share)
