"""Buffers go round: free, in flight, lent, and free again; none is written while anybody holds a view of it."""

from __future__ import annotations

import gc
from pathlib import Path
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


def test_memory_is_unlocked_before_it_is_unmapped_and_not_while_a_picture_lies_in_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    locked: dict[int, int] = {}
    mapped_when_unlocked: list[bool] = []

    class Cudart:
        """CUDA's runtime: remembers what is locked, and looks whether it is mapped still when it is to be unlocked."""

        def cudaHostRegister(self, address: int, num_bytes: int, flags: int) -> int:
            assert is_mapped(address, num_bytes)
            locked[address] = num_bytes
            return 0

        def cudaHostUnregister(self, address: int) -> None:
            mapped_when_unlocked.append(is_mapped(address, locked.pop(address)))

    monkeypatch.setattr(torch.cuda, "cudart", Cudart)
    buffers = ImageBuffers(1, 4, 64, pin_memory=True)
    assert sum(locked.values()) == buffer_bytes(1, 4, 64)
    own = {array.ctypes.data: array.nbytes for array in buffers.arrays}
    assert own == locked
    slot = buffers.take()
    row = buffers.lend(slot, 3)[2]  # outlives the buffers
    lent = buffers.arrays[slot].ctypes.data
    del buffers
    assert list(locked) == [lent] and mapped_when_unlocked == [True] * 3
    assert is_mapped(lent, own[lent]) and row.sum() == 0
    del row
    assert not locked and mapped_when_unlocked == [True] * 4
    assert not any(is_mapped(address, num_bytes) for address, num_bytes in own.items())


def is_mapped(address: int, num_bytes: int) -> bool:
    """Whether one map of this process that is shared and of no file holds all of these bytes."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if not line.endswith("/dev/zero (deleted)"):
            continue
        start, end = (int(bound, 16) for bound in line.split()[0].split("-"))
        if start <= address and address + num_bytes <= end:
            return True
    return False
