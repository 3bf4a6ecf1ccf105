"""The optimizer with a learning rate for each named part, and no decay where decay does harm."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from core.errors import ConfigError, did_you_mean
from trainer.models.trained import TrainedModel
from trainer.optim.config import OptimConfig


def build_optimizer(model: TrainedModel, config: OptimConfig) -> torch.optim.Optimizer:
    """`config.optimizer` over the trainable parameters; groups have their part's "name" and "lr_ratio" to `config.lr`.

    Raises:
        ConfigError: a learning rate is set for a part that the model does not have, or does not train; or the
            optimizer's library is not installed.
    """
    groups: list[dict[str, Any]] = []
    parts = {name: parameters for name, parameters in model.parameter_groups().items() if parameters}
    for name in config.part_lr:
        if name not in parts:
            raise ConfigError(f"optim.part_lr: nothing called '{name}' is trained.{did_you_mean(name, parts)}")
    for name, parameters in parts.items():
        lr = config.part_lr.get(name, config.lr)
        shared = {"name": name, "lr": lr, "lr_ratio": lr / config.lr}
        for decays in (True, False):
            chosen = [p for p in parameters if _decays(p) == decays]
            if chosen:
                decay = config.weight_decay if decays else 0.0
                groups.append({**shared, "params": chosen, "weight_decay": decay})
    part = config.optimizer_part
    fused = config.fused if config.fused is not None else part.has_fused and groups[0]["params"][0].is_cuda
    return part.build(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)


def set_learning_rates(optimizer: torch.optim.Optimizer, lr: float) -> dict[str, float]:
    """Give every group its share of `lr`; returns the rate of each part by name, 0 while all of it is frozen."""
    rates: dict[str, float] = {}
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_ratio"]
        trains = any(p.requires_grad for p in group["params"])
        rates[group["name"]] = max(rates.get(group["name"], 0.0), group["lr"] if trains else 0.0)
    return rates


def _decays(parameter: nn.Parameter) -> bool:
    # Norms and biases are vectors, logit_scale is a scalar; decay would pull them from where they work.
    return parameter.ndim > 1
