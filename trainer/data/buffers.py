"""Memory for the images of batches: written by workers, read by the trainer, used again and again.

Fresh memory for each batch costs a third of the decoding speed: the system clears every page of it first
(224 px, 1 core: 4,300 images/s into old memory, 2,700 into new shared memory).
Memory is anonymous and shared with forked workers, so a small /dev/shm (containers: 64 MiB) is no limit.
"""

from __future__ import annotations

import weakref
from collections import deque

import torch
from torch import Tensor

from core.host_memory import shared_memory

_MAX_LENT = 3  # buffers that consumers may hold at a time: the batch in use, and two on their way to the device


def buffer_bytes(max_in_flight: int, rows: int, size: int) -> int:
    """Memory of `ImageBuffers` of these arguments."""
    return (max_in_flight + _MAX_LENT) * rows * size * size * 3


class ImageBuffers:
    """A fixed number of buffers `(rows, size, size, 3)` uint8; each is free, in flight (workers write it) or lent.

    A lent buffer returns by itself once nobody holds its tensor or a view of it. Who keeps more batches than a loop
    needs (`list(loader)`) gets copies, so that no batch ever changes under its holder.
    """

    def __init__(self, max_in_flight: int, rows: int, size: int, pin_memory: bool) -> None:
        shape = (rows, size, size, 3)
        number, num_bytes = max_in_flight + _MAX_LENT, rows * size * size * 3
        remedy = ", or lower data.prefetch."
        # Locked once: workers decode into memory that the GPU copies from, without a copy by the trainer's process.
        self.arrays = [shared_memory(num_bytes, pin_memory, remedy).reshape(shape) for _ in range(number)]
        self._free = deque(range(number))
        self._in_flight: set[int] = set()

    def take(self) -> int:
        """A free buffer's number; it is in flight from now on."""
        slot = self._free.popleft()
        self._in_flight.add(slot)
        return slot

    def lend(self, slot: int, rows: int) -> Tensor:
        """The first `rows` images of a buffer that is written, `(rows, 3, S, S)` channels_last."""
        self._in_flight.remove(slot)
        num_lent = len(self.arrays) - len(self._free) - len(self._in_flight) - 1
        if num_lent >= _MAX_LENT:
            images = torch.from_numpy(self.arrays[slot][:rows].copy())
            self._free.append(slot)
        else:
            view = self.arrays[slot][:rows]  # torch holds this very object until the last view of the tensor is gone
            weakref.finalize(view, self._free.append, slot).atexit = False
            images = torch.from_numpy(view)
        return images.permute(0, 3, 1, 2)

    def reclaim(self) -> None:
        """Free the buffers in flight; nobody may be writing them any more."""
        self._free.extend(sorted(self._in_flight))
        self._in_flight.clear()
