"""A model's buffers (running statistics, counters) as they were: kept and put back in a few kernels, however many."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class KeptBuffers:
    """What buffers held when this was made; all of a type in one tensor, since hundreds of small copies cost more."""

    @torch.no_grad()
    def __init__(self, buffers: Iterable[Tensor]) -> None:
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for buffer in buffers:
            by_type.setdefault(buffer.dtype, []).append(buffer)
        self._kept = [(alike, _joined(alike)) for alike in by_type.values()]

    @torch.no_grad()
    def put_back(self, where: Tensor | None = None) -> None:
        """Give the buffers what they held, everywhere or where `where`, a bool scalar on their device, is true."""
        for buffers, kept in self._kept:
            values = kept if where is None else torch.where(where, kept, _joined(buffers))
            parts = values.split([buffer.numel() for buffer in buffers])
            torch._foreach_copy_(buffers, [part.view_as(buffer) for part, buffer in zip(parts, buffers, strict=True)])


def _joined(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])
