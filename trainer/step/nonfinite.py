"""A step without finite gradients leaves everything as it was: weights, moments, step count, statistics, average."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainer.step.buffers import KeptBuffers


@torch.no_grad()
def step_if_finite(optimizer: Any, grad_norm: Tensor, before: KeptBuffers) -> Tensor:
    """Let the optimizer step where the norm over all gradients is finite, and put the buffers back where it is not.

    The norm is the same on every rank, so all ranks decide alike. A fused optimizer decides on the device, and nobody
    waits for it; any other one asks the host. Under fp16 the loss scaler has the first word, by the same rule.

    Args:
        optimizer: as `accelerator.prepare` gave it, or bare.
        grad_norm: scalar, before clipping.
        before: the model's buffers before the step; a batch that overflows leaves its mark in batch statistics.

    Returns:
        Whether it stepped: a bool scalar on the norm's device.
    """
    is_finite = torch.isfinite(grad_norm)
    inner = getattr(optimizer, "optimizer", optimizer)  # Accelerate's wrapper
    if getattr(optimizer, "scaler", None) is not None:
        optimizer.step()
    elif inner.defaults.get("fused"):
        inner.grad_scale, inner.found_inf = None, (~is_finite).float()
        optimizer.step()
        del inner.grad_scale, inner.found_inf
    elif bool(is_finite):
        optimizer.step()
    before.put_back(~is_finite)
    return is_finite
