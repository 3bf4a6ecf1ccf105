"""The one way between this process's memory and a device: no copy here makes the process wait for the device."""

from __future__ import annotations

import torch
from torch import Tensor


def upload(x: Tensor, device: torch.device) -> Tensor:
    """`x` on the device, in the order of its current stream; on the CPU `x` itself.

    The copy to a GPU goes through page-locked memory, from torch's pool of it where `x` lies elsewhere: only then the
    host goes on at once. Nothing that lies in that pool is used again before its copy is done; whoever page-locked `x`
    itself must keep it as it is until then.
    """
    return _sent(x, device)


class Download:
    """A device's tensor on its way to the host, which goes on meanwhile."""

    def __init__(self, x: Tensor) -> None:
        self._value, self._arrived = _fetched(x.detach())

    def value(self) -> Tensor:
        """The tensor on the host; waits for what the device had to do before it was asked for, and for nothing else."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._value


def _sent(x: Tensor, device: torch.device) -> Tensor:
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def _fetched(x: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    if not x.is_cuda:
        return x.to("cpu", copy=True), None
    value = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    value.copy_(x, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(x.device))
    return value, arrived
