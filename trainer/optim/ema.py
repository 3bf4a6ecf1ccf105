"""A running average of the weights, which often does better than the last ones (Polyak 1992)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import chain
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


class AveragedModel(Generic[M]):
    """A copy of a model that follows its parameters and buffers.

    After n updates the decay is (1 + n) / (10 + n) until that reaches `decay` (as in TensorFlow's
    ExponentialMovingAverage), or a short run would keep its random start.
    """

    def __init__(self, model: M, decay: float) -> None:
        self.module: M = copy.deepcopy(model).requires_grad_(False).eval()
        self._decay = decay
        device = next(model.parameters()).device
        self._num_updates = torch.zeros((), dtype=torch.int64, device=device)  # on the device: no step waits for it

    @property
    def num_updates(self) -> Tensor:
        """Updates so far, a scalar on the device; it moves on with every update."""
        return self._num_updates

    @torch.no_grad()
    def update(self, model: M, is_finite: Tensor) -> None:
        """Move towards `model`; where `is_finite`, a bool scalar, is false, nothing changes."""
        n = self._num_updates
        keep = ((1 + n) / (10 + n)).clamp(max=self._decay)
        keep = torch.where(n == 0, 0, keep)  # the first one is a copy
        keep = torch.where(is_finite, keep, 1)
        pairs = list(zip(_tensors(self.module), _tensors(model), strict=True))
        averages = [(old, new) for old, new in pairs if old.is_floating_point()]
        counters = [(old, new) for old, new in pairs if not old.is_floating_point()]  # of batch norms
        _move(averages, keep)
        _move(counters, (~is_finite).long())
        self._num_updates += is_finite

    def load(self, state: dict[str, Tensor], num_updates: int) -> None:
        """Go on from a checkpoint."""
        self.module.load_state_dict(state)
        self._num_updates.fill_(num_updates)


def _move(pairs: Sequence[tuple[Tensor, Tensor]], keep: Tensor) -> None:
    """`old = keep * old + (1 - keep) * new` for all at once; 0 and 1 are exact, which sums of differences are not."""
    if pairs:
        old, new = map(list, zip(*pairs))
        torch._foreach_mul_(old, keep)
        torch._foreach_add_(old, torch._foreach_mul(new, 1 - keep))


def _tensors(model: nn.Module) -> chain[Tensor]:
    return chain(model.parameters(), model.buffers())
