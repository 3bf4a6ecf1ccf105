"""A running average of the weights, which often does better than the last ones (Polyak 1992)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def averaged_model(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of `model` that follows it: call `.update_parameters(model)` after each step, use `.module`.

    After n updates the decay is (1 + n) / (10 + n) until that reaches `decay` (as in TensorFlow's
    ExponentialMovingAverage), or a short run would keep its random start.
    """

    def average(averaged: Sequence[Tensor], current: Sequence[Tensor], num_updates: Tensor | int) -> None:
        # A tensor all the way: on a GPU the step waits for nothing.
        keep = ((1 + num_updates) / (10 + num_updates)).clamp(max=decay)  # type: ignore[union-attr]
        for old, new in zip(averaged, current):
            if old.is_floating_point():
                old.lerp_(new, (1 - keep).to(old.dtype))
            else:
                old.copy_(new)  # counters of batch norms

    averaged = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
    return averaged.requires_grad_(False).eval()
