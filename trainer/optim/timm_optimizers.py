"""The door to timm's optimizers: those that torch has not, kept by people who train with them."""

from __future__ import annotations

import importlib.util
from typing import Any

from torch.optim import Optimizer

from core.errors import ConfigError


def lamb(groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float) -> Optimizer:
    """LAMB (You 2020); gradients are clipped before it, so it does not clip them again.

    Raises:
        ConfigError: timm is not installed.
    """
    _expect_timm("lamb")
    from timm.optim import Lamb

    optimizer: Optimizer = Lamb(groups, lr=lr, betas=betas, eps=eps, max_grad_norm=None)
    return optimizer


def lion(groups: list[dict[str, Any]], lr: float, betas: tuple[float, float]) -> Optimizer:
    """Lion (Chen 2023).

    Raises:
        ConfigError: timm is not installed.
    """
    _expect_timm("lion")
    from timm.optim import Lion

    optimizer: Optimizer = Lion(groups, lr=lr, betas=betas)
    return optimizer


def _expect_timm(name: str) -> None:
    if importlib.util.find_spec("timm") is None:
        raise ConfigError(
            f"optim.optimizer is {name}, which is timm's, and timm is not installed. `pip install 'shardclip[timm]'`, "
            "or choose adamw or sgd."
        )
