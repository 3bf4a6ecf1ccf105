"""A step without finite gradients must not reach the weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


@torch.no_grad()
def drop_nonfinite(parameters: Iterable[nn.Parameter], grad_norm: Tensor) -> None:
    """Zero every gradient if the norm over all of them is not finite; decided on the device, without waiting for it.

    The step then only decays: moments and weights stay finite, and telemetry counts it. The norm is the same on every
    rank, so all ranks decide alike.
    """
    is_finite = torch.isfinite(grad_norm)
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.copy_(torch.where(is_finite, parameter.grad, 0.0))
