"""Buffers go round: free, in flight, lent, and free again; none is written while anybody holds a view of it."""

from __future__ import annotations

import gc
from typing import ClassVar

import pytest
import torch

from core.errors import ConfigError
from trainer.data.buffers import ImageBuffers, buffer_bytes


@pytest.mark.parametrize(("max_in_flight", "rows", "size"), [(1, 1, 1), (2, 5, 3), (4, 2, 7)])
def test_memory_is_what_is_said_and_all_that_may_be_in_flight_fits(max_in_flight: int, rows: int, size: int) -> None:
    buffers = ImageBuffers(max_in_flight, rows, size, pin_memory=False)
    assert sum(array.nbytes for array in buffers.arrays) == buffer_bytes(max_in_flight, rows, size)
    held = [buffers.lend(buffers.take(), rows) for _ in range(3)]
    taken = {buffers.take() for _ in range(max_in_flight)}
    assert len(taken) == max_in_flight and len(held) == 3


def test_a_lent_buffer_is_free_when_its_last_view_is_gone() -> None:
    buffers = ImageBuffers(1, 2, 4, pin_memory=False)
    slots = set()
    for _ in range(9):
        slot = buffers.take()
        buffers.arrays[slot][:] = slot
        view = buffers.lend(slot, 2)[1, :, 2:]
        gc.collect()
        assert (view == slot).all()
        slots.add(slot)
        del view
    assert len(slots) == 4


def test_the_fourth_batch_that_is_kept_is_a_copy_of_its_rows() -> None:
    buffers = ImageBuffers(1, 3, 4, pin_memory=False)
    kept = []
    for number in range(8):
        slot = buffers.take()
        buffers.arrays[slot][:] = number
        kept.append(buffers.lend(slot, 2))
    assert [(tuple(batch.shape), batch.unique().tolist()) for batch in kept] == [((2, 3, 4, 4), [n]) for n in range(8)]
    own = {array.ctypes.data for array in buffers.arrays}
    assert [batch.data_ptr() in own for batch in kept] == [True] * 3 + [False] * 5
    assert all(batch.is_contiguous(memory_format=torch.channels_last) for batch in kept)


def test_what_was_in_flight_is_free_after_a_plan_was_left() -> None:
    buffers = ImageBuffers(3, 1, 2, pin_memory=False)
    for _ in range(5):
        assert len({buffers.take() for _ in range(3)}) == 3
        buffers.reclaim()


def test_memory_that_cannot_be_page_locked_is_refused_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    class Cudart:
        """CUDA's runtime, with room for one buffer."""

        locked: ClassVar[list[tuple[int, int]]] = []

        def cudaHostRegister(self, address: int, num_bytes: int, flags: int) -> int:
            self.locked.append((address, num_bytes))
            return int(len(self.locked) > 1)

        def cudaHostUnregister(self, address: int) -> None:
            self.locked.remove((address, 2**20 * 3))

    monkeypatch.setattr(torch.cuda, "cudart", Cudart)
    with pytest.raises(ConfigError, match=r"^3 MiB of memory cannot be page-locked\. Raise `ulimit -l`"):
        ImageBuffers(1, 4, 512, pin_memory=True)
