"""The optimizers by name, as what a recipe says of them; free of torch until one is built.

To add one: a class here, which knows how to build it, and a line in the table.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from core.errors import ConfigError

if TYPE_CHECKING:
    from torch.optim import Optimizer

_LARGEST_SHRINKAGE = 0.01  # share of a weight that decay may take in a step; half of it is gone after 70 of these


@dataclass(frozen=True)
class OptimizerPart(ABC):
    """An optimizer's own options, and how it is built."""

    reads: ClassVar[tuple[str, ...]] = ("betas", "eps")  # which of these settings of `optim` count
    has_fused: ClassVar[bool] = False  # in one kernel, which decides itself whether the gradients are finite

    @property
    def num_moments(self) -> int:
        """Tensors of a parameter's size that it keeps for each: two averages, or fewer."""
        return 2

    def check(self, lr: float, weight_decay: float) -> None:
        """Raise where settings that each may be right do not go together.

        Args:
            lr: the highest of any part.
        """
        return

    @abstractmethod
    def build(
        self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float, fused: bool
    ) -> Optimizer:
        """The optimizer over `groups`, each with its own "lr" and "weight_decay".

        A parameter without gradient (one that is still frozen) is passed over: it neither moves nor decays.
        """


@dataclass(frozen=True)
class AdamW(OptimizerPart):
    """Adam with decoupled weight decay (Loshchilov 2019)."""

    has_fused = True

    def build(
        self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float, fused: bool
    ) -> Optimizer:
        import torch

        return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=fused)


@dataclass(frozen=True)
class SGD(OptimizerPart):
    """Stochastic gradient descent with momentum; weight decay is added to the gradient (L2)."""

    reads = ()
    has_fused = True

    momentum: float = 0.9  # share of the step before that goes on; 0: none
    nesterov: bool = False  # look ahead (Sutskever 2013)

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"optim.optimizer 'sgd': momentum is {self.momentum}: give a number from 0 to below 1.")
        if self.nesterov and not self.momentum:
            raise ConfigError("optim.optimizer 'sgd': nesterov needs a momentum. Set momentum to 0.9, or leave it out.")

    @property
    def num_moments(self) -> int:
        return 1 if self.momentum else 0

    def check(self, lr: float, weight_decay: float) -> None:
        """Raise where decay alone would undo what is learned: AdamW's usual decay is far too much here."""
        shrinkage = lr * weight_decay / (1 - self.momentum)
        if shrinkage > _LARGEST_SHRINKAGE:
            raise ConfigError(
                f"optim.weight_decay is {weight_decay}: with sgd, a learning rate of {lr} and a momentum of "
                f"{self.momentum} it would take {100 * shrinkage:.2g} % of every weight in a step. Set about 1e-4."
            )

    def build(
        self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float, fused: bool
    ) -> Optimizer:
        from trainer.optim.sgd import SteadySGD

        return SteadySGD(groups, lr=lr, momentum=self.momentum, nesterov=self.nesterov, fused=fused)


@dataclass(frozen=True)
class Lamb(OptimizerPart):
    """Adam whose step is as long as a share of each tensor: for very large batches (You 2020)."""

    def build(
        self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float, fused: bool
    ) -> Optimizer:
        from trainer.optim.timm_optimizers import lamb

        return lamb(groups, lr=lr, betas=betas, eps=eps)


@dataclass(frozen=True)
class Lion(OptimizerPart):
    """The sign of a momentum (Chen 2023): a third to a tenth of AdamW's rate, with as many times its decay."""

    reads = ("betas",)

    @property
    def num_moments(self) -> int:
        return 1

    def build(
        self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float, fused: bool
    ) -> Optimizer:
        from trainer.optim.timm_optimizers import lion

        return lion(groups, lr=lr, betas=betas)


OPTIMIZERS: Mapping[str, Callable[..., OptimizerPart]] = {
    "adamw": AdamW,
    "sgd": SGD,
    "lamb": Lamb,
    "lion": Lion,
}
