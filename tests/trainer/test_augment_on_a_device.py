"""Augmentation on a device that nobody has: what it copies, what it asks of the device, what memory it takes.

Torch's fake tensors have a device and no data: what would read a value, or join tensors of two devices, is an error.
Where only memory counts, meta tensors do, which are faster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainer.data.batch import Batch
from trainer.data.inputs import drawn_for, model_inputs
from trainer.pictures import augment as augment_module
from trainer.pictures.augment import Augment, Normalize
from trainer.pictures.config import AugmentConfig
from trainer.pictures.normalization import CLIP

GPU, META = torch.device("cuda", 0), torch.device("meta")
EVERYTHING = AugmentConfig(jitter=0.8, grayscale=0.2, blur=0.5)
STORED, SIZE = 40, 32


class Device(TorchDispatchMode):
    """The device's side of what happens: tensors that were sent there one way, and bytes of storages that live there.

    Raises: AssertionError: a tensor comes there, or leaves, another way.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.sent: list[Tensor] = []
        self.peak = 0
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self._is_sending = False

    def send(self, x: Tensor, device: torch.device) -> Tensor:
        """In the place of `core.transfer._sent`."""
        self.sent.append(x)
        self._is_sending = True
        try:
            return x.to(device)
        finally:
            self._is_sending = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        result = func(*args, **(kwargs or {}))
        made = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        is_joint = len({x.device.type for x in [*given, *made] if x.ndim}) > 1
        assert self._is_sending or not is_joint, f"{func} goes between host and device, and not by core.transfer"
        for storage in (x.untyped_storage() for x in made if x.device.type == self.device.type):
            self._storages[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._storages = {key: held for key, held in self._storages.items() if not held[0].expired()}
        self.peak = max(self.peak, sum(num_bytes for _, num_bytes in self._storages.values()))
        return result


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch, where: torch.device = GPU) -> Iterator[Device]:
    device = Device(where)
    fake = FakeTensorMode(allow_non_fake_inputs=True) if where == GPU else nullcontext()
    with monkeypatch.context() as patch, fake, device:
        patch.setattr("core.transfer._sent", device.send)
        yield device


def stored(batch: int, size: int = STORED, where: torch.device = GPU) -> Tensor:
    return torch.empty(batch, size, size, 3, dtype=torch.uint8, device=where).permute(0, 3, 1, 2)


@pytest.mark.parametrize("config", [AugmentConfig(), EVERYTHING], ids=["crops", "everything"])
def test_a_batch_sends_one_tensor_of_numbers_and_reads_nothing(
    config: AugmentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws = np.arange(600)
    augment = Augment(config, SIZE, *CLIP, seed=0, channels_last=True, dtype=torch.bfloat16)
    with watched(monkeypatch) as device:
        images = stored(600)
        augment(images, 0, draws)  # constants go too, once
        device.sent.clear()
        for view in range(2):
            made = augment(images, 1, draws, view)
            assert made.device == GPU and made.dtype == torch.bfloat16 and made.shape == (600, 3, SIZE, SIZE)
        assert [(tuple(x.shape), x.dtype) for x in device.sent] == [
            ((600, 6 if config is not EVERYTHING else 12), torch.float32)
        ] * 2


def test_evaluation_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    normalize = Normalize(SIZE, *CLIP)
    with watched(monkeypatch) as device:
        images = stored(300)
        normalize(images)
        device.sent.clear()
        assert normalize(images).device == GPU
        assert len(device.sent) == 1


@pytest.mark.parametrize(
    "reading",
    [
        lambda numbers: numbers[:, 5].any().item(),
        lambda numbers: bool((numbers > 0).all()),
        lambda numbers: numbers.cpu(),
        lambda numbers: numbers.tolist(),
        lambda numbers: numbers[numbers[:, 4] > 0],
        lambda numbers: numbers * torch.ones(6),
        lambda numbers: torch.ones(6).to(numbers.device),
        lambda numbers: torch.tensor([1.0, 2.0], device=numbers.device),
    ],
    ids=["item", "bool", "cpu", "tolist", "mask", "host tensor", "copy", "list"],
)
def test_the_watch_sees_what_would_make_the_host_wait(
    reading: Callable[[Tensor], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = augment_module._Output._taps

    def reads(self: Any, numbers: Tensor, height: int, width: int) -> Any:
        reading(numbers)
        return honest(self, numbers, height, width)

    monkeypatch.setattr(augment_module._Output, "_taps", reads)
    with watched(monkeypatch), pytest.raises(Exception, match=r"device|aten\.|Scalar"):  # fake tensors have many errors
        Normalize(SIZE, *CLIP)(stored(4))


def peak_bytes(
    monkeypatch: pytest.MonkeyPatch, config: AugmentConfig, *, batch: int, chunk: int, views: int, size: int = SIZE
) -> int:
    """Most bytes on the device at a time, beside the stored pictures, while a batch's chunks are made one by one."""
    augment = Augment(config, size, *CLIP, seed=0, channels_last=True, dtype=torch.bfloat16)
    rows = torch.arange(batch)
    with watched(monkeypatch, META) as device:
        images = stored(batch, size, META)
        before, whole = device.peak, drawn_for(Batch(images, {}, rows, rows), views, augment)
        parts = [slice(start, start + chunk) for start in range(0, batch, chunk)]
        for make in [partial(model_inputs, whole, part, views, augment.render) for part in parts]:
            assert {len(pictures) for pictures in make().values()} == {chunk}
        return device.peak - before


@pytest.mark.parametrize(("views", "batches"), [(1, (256, 4_096)), (2, (256, 4_096, 32_768))])
def test_memory_does_not_grow_with_the_batch_at_a_fixed_chunk(
    views: int, batches: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    crops = AugmentConfig()
    peaks = {batch: peak_bytes(monkeypatch, crops, batch=batch, chunk=256, views=views) for batch in batches}
    assert len(set(peaks.values())) == 1, peaks


@pytest.mark.parametrize("views", [1, 2])
def test_beyond_256_pictures_only_what_comes_out_takes_memory(views: int, monkeypatch: pytest.MonkeyPatch) -> None:
    beside = {}
    for chunk in (256, 512, 2_048):
        outputs, numbers = views * chunk * 2 * 3 * SIZE * SIZE, 4 * 12 * chunk  # bfloat16, float32
        beside[chunk] = peak_bytes(monkeypatch, EVERYTHING, batch=chunk, chunk=chunk, views=views) - outputs - numbers
    assert len(set(beside.values())) == 1, beside


def test_pictures_of_224_pixels_take_a_gibibyte_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 2**29 < peak_bytes(monkeypatch, EVERYTHING, batch=256, chunk=256, views=1, size=224) < 2**30
