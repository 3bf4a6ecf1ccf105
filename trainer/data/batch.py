"""What the loaders hand out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from core.errors import DamagedError

_NAMED = 5  # damaged samples named in an error


@dataclass(frozen=True)
class Damage:
    """A sample that could not be used, and the one that stood in for it."""

    sample: int
    description: str  # shard and key, for people
    reason: str
    substitute: int
    row: int  # in its batch


@dataclass(frozen=True)
class Batch:
    """One rank's part of a global batch in training.

    Attributes:
        images: `(B, 3, S, S)` uint8, channels_last (a view of NHWC memory).
        text: `(B, E)` float16, unit length: one caption of each image, drawn by (seed, epoch, sample).
        samples: `(B,)` int64 sample numbers as served (a damaged sample's substitute); stays on the host.
        image_ids: `(B,)` int64, equal where samples show one image.
        step: in the epoch.
        read_s, decode_s: time the workers took for it, summed over them.
        collate_s: time it took to join their parts.
        wait_s: time the trainer waited for it.
    """

    images: Tensor
    text: Tensor
    samples: Tensor
    image_ids: Tensor
    epoch: int
    step: int
    damaged: tuple[Damage, ...] = ()
    read_s: float = 0.0
    decode_s: float = 0.0
    collate_s: float = 0.0
    wait_s: float = 0.0

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory, which copies to a GPU in the background need."""
        return _pinned(self)

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:
        """The batch on a device; `samples` stays on the host."""
        return _moved(self, device, non_blocking)


@dataclass(frozen=True)
class EvalBatch:
    """Images with all of their captions.

    Attributes:
        images: `(B, 3, S, S)` uint8, channels_last.
        text: `(sum of num_captions, E)` float16: the captions of the first image, then those of the second, ...
        num_captions: `(B,)` int64; stays on the host, as `samples` does.
        samples: `(B,)` int64 sample numbers: they put results of several ranks in order.
        image_ids: `(B,)` int64, equal where samples show one image.
    """

    images: Tensor
    text: Tensor
    num_captions: Tensor
    samples: Tensor
    image_ids: Tensor
    wait_s: float = 0.0

    def pin_memory(self) -> EvalBatch:
        """The batch in page-locked memory."""
        return _pinned(self)

    def to(self, device: torch.device, non_blocking: bool = False) -> EvalBatch:
        """The batch on a device."""
        return _moved(self, device, non_blocking)


AnyBatch = TypeVar("AnyBatch", Batch, EvalBatch)


def too_many_damaged(descriptions: Sequence[str], max_damaged: int) -> DamagedError:
    """The error that ends a run, with the first samples by name."""
    more = f" and {len(descriptions) - _NAMED} more" if len(descriptions) > _NAMED else ""
    return DamagedError(
        f"{len(descriptions)} damaged samples, max_damaged is {max_damaged}: {', '.join(descriptions[:_NAMED])}{more}. "
        "Run `shardclip verify`, restore the shards or, in training, raise data.max_damaged."
    )


def _pinned(batch: AnyBatch) -> AnyBatch:
    images = batch.images if batch.images.is_pinned() else batch.images.pin_memory()
    return replace(batch, images=images, text=batch.text.pin_memory(), image_ids=batch.image_ids.pin_memory())


def _moved(batch: AnyBatch, device: torch.device, non_blocking: bool) -> AnyBatch:
    moved = {
        name: getattr(batch, name).to(device, non_blocking=non_blocking) for name in ("images", "text", "image_ids")
    }
    return replace(batch, **moved)
