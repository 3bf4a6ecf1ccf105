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
from trainer.losses.infonce import InfoNCE

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


def in_blocks(block_size: int) -> Loss:
    """The trainer's loss, as it is called in one process."""

    def loss(image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
        pairs, groups = (image_features, text_features), torch.arange(len(image_features))
        return InfoNCE(block_size=block_size)(*pairs, *pairs, logit_scale, groups, groups, 0)

    return loss


def dense(image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
    """The defect: the whole matrix at once, as plain autograd keeps it."""
    logits, target = logit_scale * image_features @ text_features.T, torch.arange(len(image_features))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def memory(loss: Loss, num_pairs: int) -> tuple[int, int]:
    """Bytes kept for the backward pass, and bytes at the peak of both passes, above the features themselves."""
    generator = torch.Generator().manual_seed(0)
    image, text = (F.normalize(torch.randn(num_pairs, EMBED_DIM, generator=generator), dim=1) for _ in range(2))
    scale = torch.tensor(14.3, requires_grad=True)
    kept: dict[int, int] = {}

    def note(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with LiveBytes() as counted:
        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            value = loss(image.requires_grad_(), text.requires_grad_(), scale)
        value.backward()
    return sum(kept.values()), counted.peak


def slope(sizes: Sequence[int], values: Sequence[int]) -> float:
    """Of the straight line through all points, in double logarithmic scale."""
    x, y = ([math.log(value) for value in row] for row in (sizes, values))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y)) / sum((a - mean_x) ** 2 for a in x)


SHORT, FULL = [512, 1024, 2048], [512, 1024, 2048, 4096, 8192]
LENGTHS = [SHORT, pytest.param(FULL, marks=pytest.mark.slow)]


@pytest.mark.parametrize("sizes", LENGTHS, ids=lambda sizes: f"to-{sizes[-1]}")
def test_memory_grows_with_the_batch_not_its_square(sizes: list[int]) -> None:
    kept, peak = zip(*(memory(in_blocks(128), size) for size in sizes), strict=True)
    print(f"{sizes} pairs: kept {kept} bytes, slope {slope(sizes, kept):.3f}; peak {peak}, {slope(sizes, peak):.3f}")
    assert slope(sizes, kept) <= MAX_SLOPE
    assert slope(sizes, peak) <= MAX_SLOPE


@pytest.mark.parametrize("sizes", LENGTHS, ids=lambda sizes: f"to-{sizes[-1]}")
def test_the_default_blocks_keep_as_little(sizes: list[int]) -> None:
    kept, peak = zip(*(memory(in_blocks(InfoNCE().block_size), size) for size in sizes), strict=True)
    print(f"{sizes} pairs: kept slope {slope(sizes, kept):.3f}; peak {peak}")
    assert slope(sizes, kept) <= MAX_SLOPE
    # Up to one block there is one block: it is from there on that the peak follows the batch.
    whole_blocks = [size for size in sizes if size >= InfoNCE().block_size]
    assert slope(whole_blocks, peak[-len(whole_blocks) :]) <= MAX_SLOPE


def test_a_loss_that_keeps_the_whole_matrix_is_seen() -> None:
    kept, peak = zip(*(memory(dense, size) for size in SHORT), strict=True)
    assert slope(SHORT, kept) > 1.8 and slope(SHORT, peak) > 1.8
    kept, peak = zip(*(memory(in_blocks(0), size) for size in SHORT), strict=True)  # one block of all rows
    assert slope(SHORT, kept) <= MAX_SLOPE and slope(SHORT, peak) > 1.7


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
