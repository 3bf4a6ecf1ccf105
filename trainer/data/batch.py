"""What the loaders hand out: pictures, and whatever else is known of the same samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from core.errors import DamagedError
from core.transfer import upload
from trainer.pictures.draw import Draw

_NAMED = 5  # damaged samples named in an error


@dataclass(frozen=True)
class Damage:
    """A sample that could not be used, and the one that stood in for it."""

    sample: int
    description: str  # shard and key, for people
    reason: str
    substitute: int
    row: int  # in its batch


class Ragged(NamedTuple):
    """A column with a different number of values for each sample: those of the first, then those of the second, ..."""

    values: Tensor  # (sum of counts, ...)
    counts: Tensor  # (B,) int64; stays on the host


@dataclass(frozen=True)
class Batch:
    """One rank's part of a global batch.

    Attributes:
        images: `(B, 3, S, S)` uint8, channels_last (a view of NHWC memory); None where no picture is read.
        columns: by name, `(B, ...)`, or ragged; "image_id" `(B,)` int64 is always there, equal where samples show
            one image (where captions are compared: as `core.class_captions.answer_ids`). In training a column of
            captions has the one caption that was drawn, the same one in every such column; in evaluation it is ragged
            and has all of them.
        drawn: of each view what is done to the pictures; only in training.
        samples: `(B,)` int64 sample numbers as served (a damaged sample's substitute); stays on the host.
        draws: `(B,)` int64 what a position's random choices are keyed by, `samplers.epoch.draws_of`; on the host.
        step: in the epoch.
        read_s, decode_s: time the workers took for it, summed over them.
        collate_s: time it took to join their parts.
        draw_s: time it took to draw what is done to the pictures.
        wait_s: time the trainer waited for it.
    """

    images: Tensor | None
    columns: Mapping[str, Tensor | Ragged]
    samples: Tensor
    draws: Tensor
    epoch: int = 0
    step: int = 0
    drawn: tuple[Draw, ...] = ()
    damaged: tuple[Damage, ...] = field(default=())
    read_s: float = 0.0
    decode_s: float = 0.0
    collate_s: float = 0.0
    draw_s: float = 0.0
    wait_s: float = 0.0

    def __len__(self) -> int:
        return len(self.samples)

    def column(self, name: str) -> Tensor:
        """A column with one value for each sample."""
        values = self.columns[name]
        assert isinstance(values, Tensor), f"{name} is ragged"
        return values

    def ragged(self, name: str) -> Ragged:
        """A column with any number of values for each sample."""
        values = self.columns[name]
        assert isinstance(values, Ragged), f"{name} has one value for each sample"
        return values

    def to(self, device: torch.device) -> Batch:
        """The batch on a device; `samples`, `draws` and counts stay on the host.

        Copies to a GPU are under way when it returns: keep this batch until they are done.
        """
        images = None if self.images is None else upload(self.images, device)
        return replace(self, images=images, columns=_each(self.columns, lambda values: upload(values, device)))

    def device_tensors(self) -> Iterator[Tensor]:
        """Every tensor that `to` moves."""
        if self.images is not None:
            yield self.images
        for values in self.columns.values():
            yield values.values if isinstance(values, Ragged) else values


def too_many_damaged(descriptions: Sequence[str], max_damaged: int | None) -> DamagedError:
    """The error that ends a run, with the first samples by name.

    Args:
        max_damaged: None: each sample is measured, so that none may be damaged whatever the recipe says.
    """
    more = f" and {len(descriptions) - _NAMED} more" if len(descriptions) > _NAMED else ""
    named = f"{', '.join(descriptions[:_NAMED])}{more}"
    if max_damaged is None:
        return DamagedError(
            f"{len(descriptions)} damaged samples where every sample counts: {named}. Run `shardclip verify` and "
            "restore the shards, or build the set again without such samples; data.max_damaged is of training alone."
        )
    return DamagedError(
        f"{len(descriptions)} damaged samples, max_damaged is {max_damaged}: {named}. "
        "Run `shardclip verify` and restore the shards; or train without such samples: data.max_damaged is how many "
        "there may be, or their share, as data.max_damaged=0.001."
    )


def _each(columns: Mapping[str, Tensor | Ragged], change: Callable[[Tensor], Tensor]) -> dict[str, Tensor | Ragged]:
    return {
        name: Ragged(change(values.values), values.counts) if isinstance(values, Ragged) else change(values)
        for name, values in columns.items()
    }
