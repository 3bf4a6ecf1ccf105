"""Memory of the loss against the batch size: what is kept for the backward pass, and the peak on the way.

In row blocks both grow with the batch; a loss that holds the whole matrix, planted beside it, grows with its square.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.objectives import OBJECTIVES
from trainer.objectives.engine import blocked_loss
from trainer.objectives.infonce import InfoNCE
from trainer.objectives.nt_xent import NTXent
from trainer.objectives.objective import Objective, Rows
from trainer.objectives.siglip import SigLIP
from trainer.objectives.supcon import SupCon

MAX_SLOPE = 1.1
EMBED_DIM = 64
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that live at once since it was entered; storages count once."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        place, size = storage.data_ptr(), storage.nbytes()
        if not size or place in self._seen:
            return
        self._seen.add(place)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, place, size)

    def _release(self, place: int, size: int) -> None:
        self._seen.discard(place)
        self.live -= size


def in_blocks(objective: Objective) -> Loss:
    """The trainer's loss, as it is called in one process; ids and labels are distinct."""

    def loss(one: Tensor, other: Tensor, scale: Tensor) -> Tensor:
        features = dict(zip(objective.features, (one, other)))
        given = {name: torch.arange(len(one)) for name in objective.columns}
        rows = Rows({**features, **given}, {**features, **given}, 0)
        scalars = {"scale": scale, "bias": torch.tensor(-10.0, requires_grad=True)} if objective.parameters() else {}
        return blocked_loss(objective, rows, scalars, {})

    return loss


def dense(one: Tensor, other: Tensor, scale: Tensor) -> Tensor:
    """The defect: the whole matrix at once, as plain autograd keeps it."""
    logits, target = scale * one @ other.T, torch.arange(len(one))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def memory(loss: Loss, num_rows: int) -> tuple[int, int]:
    """Bytes kept for the backward pass, and bytes at the peak of both passes, above the features themselves."""
    generator = torch.Generator().manual_seed(0)
    one, other = (F.normalize(torch.randn(num_rows, EMBED_DIM, generator=generator), dim=1) for _ in range(2))
    scale = torch.tensor(14.3, requires_grad=True)
    with LiveBytes() as counted:
        value = loss(one.requires_grad_(), other.requires_grad_(), scale)
        # All that still lives; blocks have been differentiated already, and what they kept is gone.
        kept = counted.live
        value.backward()
    return kept, counted.peak


def slope(sizes: Sequence[int], values: Sequence[int]) -> float:
    """Of the straight line through all points, in double logarithmic scale."""
    x, y = ([math.log(value) for value in row] for row in (sizes, values))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y)) / sum((a - mean_x) ** 2 for a in x)


SHORT, FULL = [512, 1024, 2048], [512, 1024, 2048, 4096, 8192]
LENGTHS = [SHORT, pytest.param(FULL, marks=pytest.mark.slow)]
BLOCK = 128
IN_BLOCKS = {
    "infonce": InfoNCE(block_size=BLOCK),
    "infonce, every option": InfoNCE(0.1, "multi", 0.9, block_size=BLOCK),
    "siglip": SigLIP(block_size=BLOCK),
    "nt_xent": NTXent(block_size=BLOCK),
    "supcon": SupCon(block_size=BLOCK),
    "supcon, views 1": SupCon(views=1, block_size=BLOCK),
}


@pytest.mark.parametrize("sizes", LENGTHS, ids=lambda sizes: f"to-{sizes[-1]}")
@pytest.mark.parametrize("name", IN_BLOCKS)
def test_memory_grows_with_the_batch_not_its_square(name: str, sizes: list[int]) -> None:
    kept, peak = zip(*(memory(in_blocks(IN_BLOCKS[name]), size) for size in sizes), strict=True)
    print(f"{name}: kept {kept} bytes, slope {slope(sizes, kept):.3f}; peak {peak}, slope {slope(sizes, peak):.3f}")
    assert slope(sizes, kept) <= MAX_SLOPE
    assert slope(sizes, peak) <= MAX_SLOPE


def test_every_objective_has_its_memory_measured() -> None:
    assert {type(objective) for objective in IN_BLOCKS.values()} == set(OBJECTIVES.values())


@pytest.mark.parametrize("sizes", LENGTHS, ids=lambda sizes: f"to-{sizes[-1]}")
def test_the_default_blocks_keep_as_little(sizes: list[int]) -> None:
    kept, peak = zip(*(memory(in_blocks(InfoNCE()), size) for size in sizes), strict=True)
    print(f"{sizes} pairs: kept slope {slope(sizes, kept):.3f}; peak {peak}")
    assert slope(sizes, kept) <= MAX_SLOPE
    # Up to one block there is one block: it is from there on that the peak follows the batch.
    whole_blocks = [size for size in sizes if size >= InfoNCE().block_size]
    assert slope(whole_blocks, peak[-len(whole_blocks) :]) <= MAX_SLOPE


def test_a_loss_that_keeps_the_whole_matrix_is_seen() -> None:
    kept, peak = zip(*(memory(dense, size) for size in SHORT), strict=True)
    assert slope(SHORT, kept) > 1.8 and slope(SHORT, peak) > 1.8
    kept, peak = zip(*(memory(in_blocks(InfoNCE(block_size=0)), size) for size in SHORT), strict=True)  # one block
    assert slope(SHORT, kept) <= MAX_SLOPE and slope(SHORT, peak) > 1.6


def test_bytes_are_counted_while_they_live() -> None:
    with LiveBytes() as counted:
        a = torch.zeros(1000)
        b = a + 1
        view = b[:10].view(2, 5)
        del a
        assert counted.live == 4000 and counted.peak == 8000
        del b
        assert counted.live == 4000  # the view keeps it
        del view
    assert counted.live == 0 and counted.peak == 8000
