"""The settings of the optimizer; free of torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

from core.config import Choice
from core.errors import ConfigError
from core.part_options import one_of
from core.parts import build
from trainer.optim.optimizers import OPTIMIZERS, OptimizerPart
from trainer.optim.schedules import SCHEDULES, Schedule


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer, its schedule, and what else happens to the weights after a backward pass."""

    moved_keys: ClassVar[dict[str, str]] = {"tower_lr": "it is optim.part_lr.tower now: part_lr: {tower: ...}"}

    optimizer: Choice = field(default=Choice("adamw"), metadata=one_of(OPTIMIZERS))  # adamw, sgd, lamb, lion
    lr: float = 5e-4  # peak, after warm-up
    # Peak of a part by name: tower, head, text_tower, text_head, logit_scale, ... Pretrained ones want a tenth of lr.
    part_lr: dict[str, float] = field(default_factory=dict)
    # Of adamw, lamb and lion: CLIP's for transformers; steadier than 0.999 with large batches.
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6  # of adamw and lamb: goes with beta2 0.98 (CLIP: Radford 2021, table 18; open_clip)
    weight_decay: float = 0.2  # none on norms, biases and logit_scale
    fused: bool | None = None  # of adamw and sgd; None: on GPUs
    max_grad_norm: float = 1.0  # longer gradients are cut to this length
    # after warm-up: cosine, linear, constant, warm_restarts
    schedule: Choice = field(default=Choice("cosine"), metadata=one_of(SCHEDULES))
    warmup_steps: int = 500  # steps in which the rate rises from 0 to its peak
    min_lr_ratio: float = 0.0  # share of the peak that is left at the end, from 0 to 1
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
        if not 0 <= self.min_lr_ratio <= 1:
            raise ConfigError(f"optim.min_lr_ratio is {self.min_lr_ratio}: give a number from 0 to 1.")
        for name, share in {"ema_decay": self.ema_decay, "betas[0]": self.betas[0], "betas[1]": self.betas[1]}.items():
            if not 0 <= share < 1:
                raise ConfigError(f"optim.{name} is {share}: give a number from 0 to below 1.")
        if not self.schedule_part.falls and self.min_lr_ratio not in (0, 1):
            raise ConfigError(
                f"optim.min_lr_ratio is {self.min_lr_ratio}, but a {self.schedule.name} rate does not fall. Leave it "
                "out, or choose another optim.schedule."
            )
        self._expect_settings_to_count()
        self.optimizer_part.check(max(self.lr, *self.part_lr.values(), 0.0), self.weight_decay)

    @cached_property
    def optimizer_part(self) -> OptimizerPart:
        """The optimizer's own options.

        Raises:
            ConfigError: no such optimizer or option, or a value out of its range.
        """
        part: OptimizerPart = build(OPTIMIZERS, self.optimizer, "optim.optimizer")
        return part

    @cached_property
    def schedule_part(self) -> Schedule:
        """What happens to the learning rate after warm-up.

        Raises:
            ConfigError: no such schedule or option, or a value out of its range.
        """
        part: Schedule = build(SCHEDULES, self.schedule, "optim.schedule")
        return part

    def _expect_settings_to_count(self) -> None:
        """Raise where something is set that this optimizer has not."""
        part, name = self.optimizer_part, self.optimizer.name
        for setting, usual in (("betas", OptimConfig.betas), ("eps", OptimConfig.eps)):
            value = getattr(self, setting)
            if setting not in part.reads and value != usual:
                raise ConfigError(f"optim.{setting} is {value}, but {name} has none. Leave it out.")
        if self.fused and not part.has_fused:
            raise ConfigError(f"optim.fused is true, but {name} has no fused form. Leave it out.")
