"""The settings of the optimizer; free of torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from core.errors import ConfigError


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, its schedule, and what else happens to the weights after a backward pass."""

    moved_keys: ClassVar[dict[str, str]] = {"tower_lr": "it is optim.part_lr.tower now: part_lr: {tower: ...}"}

    lr: float = 5e-4  # peak, after warm-up
    # Peak of a part by name: tower, head, text_tower, text_head, logit_scale, ... Pretrained ones want a tenth of lr.
    part_lr: dict[str, float] = field(default_factory=dict)
    betas: tuple[float, float] = (0.9, 0.98)  # CLIP's for transformers; steadier than 0.999 with large batches
    eps: float = 1e-6  # goes with beta2 0.98 (CLIP: Radford 2021, table 18; open_clip)
    weight_decay: float = 0.2  # none on norms, biases and logit_scale
    fused: bool | None = None  # None: on GPUs
    max_grad_norm: float = 1.0  # longer gradients are cut to this length
    warmup_steps: int = 500  # steps in which the rate rises from 0 to its peak
    min_lr_ratio: float = 0.0  # share of the peak that is left at the end
    ema_decay: float = 0.0  # of a running average of the weights, which is then evaluated; 0: none, else e.g. 0.999

    def __post_init__(self) -> None:
        for name in ("lr", "eps", "max_grad_norm"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"optim.{name} is {getattr(self, name)}: give a number above 0.")
        for name, rate in self.part_lr.items():
            if rate <= 0:
                raise ConfigError(f"optim.part_lr.{name} is {rate}: give a number above 0, or freeze the part.")
        for name in ("weight_decay", "warmup_steps"):
            if getattr(self, name) < 0:
                raise ConfigError(f"optim.{name} is {getattr(self, name)}: give a number from 0 up.")
        shares = {"min_lr_ratio": self.min_lr_ratio, "ema_decay": self.ema_decay}
        for name, share in {**shares, "betas[0]": self.betas[0], "betas[1]": self.betas[1]}.items():
            if not 0 <= share < 1:
                raise ConfigError(f"optim.{name} is {share}: give a number from 0 to below 1.")
