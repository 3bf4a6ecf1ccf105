"""AdamW with one learning rate for the tower and one for the head, and no decay where decay does harm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from core.errors import ConfigError
from trainer.models import ContrastiveModel


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, its schedule, and what else happens to the weights after a backward pass."""

    lr: float = 5e-4  # of head and logit_scale; peak, after warm-up
    tower_lr: float | None = None  # peak; None: as lr. A pretrained tower wants a tenth of it
    betas: tuple[float, float] = (0.9, 0.98)  # CLIP's for transformers; steadier than 0.999 with large batches
    eps: float = 1e-6  # goes with beta2 0.98 (CLIP: Radford 2021, table 18; open_clip)
    weight_decay: float = 0.2  # none on norms, biases and logit_scale
    fused: bool | None = None  # None: on GPUs
    max_grad_norm: float = 1.0
    warmup_steps: int = 500
    min_lr_ratio: float = 0.0  # share of the peak that is left at the end
    ema_decay: float = 0.0  # of a running average of the weights, which is then evaluated; 0: none, else e.g. 0.999

    def __post_init__(self) -> None:
        for name in ("lr", "eps", "max_grad_norm"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"optim.{name} is {getattr(self, name)}: give a number above 0.")
        for name in ("tower_lr", "weight_decay", "warmup_steps"):
            if (getattr(self, name) or 0) < 0:
                raise ConfigError(f"optim.{name} is {getattr(self, name)}: give a number from 0 up.")
        shares = {"min_lr_ratio": self.min_lr_ratio, "ema_decay": self.ema_decay}
        for name, share in {**shares, "betas[0]": self.betas[0], "betas[1]": self.betas[1]}.items():
            if not 0 <= share < 1:
                raise ConfigError(f"optim.{name} is {share}: give a number from 0 to below 1.")
        if self.tower_lr == 0:
            raise ConfigError("optim.tower_lr is 0, which computes gradients for nothing: set model.freeze=tower.")


def build_optimizer(model: ContrastiveModel, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; each group has its part's "name" and its "lr_ratio" to `config.lr`."""
    groups: list[dict[str, Any]] = []
    for name, parameters in model.parameter_groups().items():
        lr = config.tower_lr if name == "tower" and config.tower_lr is not None else config.lr
        shared = {"name": name, "lr": lr, "lr_ratio": lr / config.lr}
        for decays in (True, False):
            chosen = [p for p in parameters if _decays(p) == decays]
            if chosen:
                decay = config.weight_decay if decays else 0.0
                groups.append({**shared, "params": chosen, "weight_decay": decay})
    fused = config.fused if config.fused is not None else groups[0]["params"][0].is_cuda
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)


def set_learning_rates(optimizer: torch.optim.Optimizer, lr: float) -> dict[str, float]:
    """Give every group its share of `lr`; returns the learning rate of each part by name."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_ratio"]
    return {group["name"]: group["lr"] for group in optimizer.param_groups}


def _decays(parameter: nn.Parameter) -> bool:
    # Norms and biases are vectors, logit_scale is a scalar; decay would pull them from where they work.
    return parameter.ndim > 1
