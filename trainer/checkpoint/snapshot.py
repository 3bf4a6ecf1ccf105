"""A copy of a run's tensors in host memory, as a step left them, in memory that is kept from save to save."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.host_memory import shared_memory
from trainer.checkpoint.tensor_tree import map_tensors

_ALIGNMENT = 64  # bytes: a cache line, and more than any dtype asks for


class Snapshot:
    """Nested values as they were when they were copied; copies from a GPU may still be on their way."""

    def __init__(self, tree: Any, arrived: torch.cuda.Event | None) -> None:
        self._tree, self._arrived = tree, arrived

    def tree(self) -> Any:
        """The values, with their tensors on the host; waits for the copies."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._tree


class HostMemory:
    """Memory for one snapshot, page-locked where a GPU writes into it; the next snapshot overwrites the last.

    It is made for the first snapshot, which so takes several times as long as the others: the system clears every page
    of fresh memory first.
    """

    def __init__(self) -> None:
        self._layout: list[Any] = []
        self._copies: list[Tensor] = []

    def copy(self, tree: Any) -> Snapshot:
        """Copy every tensor of `tree` and make its containers anew: what happens to `tree` later is not seen.

        From a GPU the copies go in the order of its current stream and the host goes on at once: later work in that
        stream cannot spoil them.

        Raises:
            ConfigError: the memory cannot be page-locked.
        """
        tensors: list[Tensor] = []
        map_tensors(tree, tensors.append)
        layout = [(tensor.shape, tensor.stride(), tensor.dtype) for tensor in tensors]
        if layout != self._layout:
            self._copies = _empty_copies(tensors)
            self._layout = layout
        for copy, tensor in zip(self._copies, tensors, strict=True):
            if tensor.device.type == "cpu" and copy.stride() == tensor.stride():
                np.copyto(_flat(copy), _flat(tensor))
            else:
                copy.copy_(tensor, non_blocking=tensor.is_cuda)
        copies = iter(self._copies)
        return Snapshot(map_tensors(tree, lambda tensor: next(copies)), _event_after(tensors))


def _empty_copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    """A tensor in host memory like each of these, strides included, one behind the other in one piece of memory."""
    sizes = [-(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT for tensor in tensors]
    memory = _memory(sum(sizes), any(tensor.is_cuda for tensor in tensors))
    starts = accumulate(sizes, initial=0)
    return [
        memory[start : start + tensor.nbytes].view(tensor.dtype).as_strided(tensor.shape, _dense_strides(tensor))
        for start, tensor in zip(starts, tensors)
    ]


def _flat(tensor: Tensor) -> np.ndarray:
    """The bytes of a tensor without gaps, in their order in memory."""
    # For a plain memcpy: torch would share every tensor's copy out to its threads and wait for them, which on cores
    # that others use too takes ten times as long.
    return tensor.detach().as_strided((tensor.numel(),), (1,)).view(torch.uint8).numpy()


def _memory(num_bytes: int, is_for_gpu: bool) -> Tensor:
    if not is_for_gpu:
        return torch.empty(num_bytes, dtype=torch.uint8)
    # Not torch's own page-locked memory, which takes the next power of two of what is asked for.
    return torch.from_numpy(shared_memory(num_bytes, True, ": checkpoints are copied into it."))


def _dense_strides(tensor: Tensor) -> tuple[int, ...]:
    """Its own, where it fills its memory without gaps: a parameter and its moments must come back alike."""
    return torch.empty_like(tensor, device="meta").stride()


def _event_after(tensors: Sequence[Tensor]) -> torch.cuda.Event | None:
    """What tells that the copies begun so far are done."""
    on_gpu = next((tensor for tensor in tensors if tensor.is_cuda), None)
    if on_gpu is None:
        return None
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(on_gpu.device))
    return arrived
