"""Samples of a shard set as batches of tensors, for `Shards.loader`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from PIL import Image

    from shardclip.shards import Sample


@dataclass(frozen=True)
class Collate:
    """`images`, `captions`, `vectors`, `samples` of a batch; a class, so that worker processes can be handed it."""

    transform: Callable[[Image.Image], Any] | None

    def __call__(self, samples: Sequence[Sample]) -> Mapping[str, Any]:
        batch: dict[str, Any] = {
            "images": torch.stack([self._tensor(sample.image) for sample in samples]),
            "captions": [sample.captions for sample in samples],
            "samples": torch.tensor([sample.number for sample in samples]),
        }
        if all(sample.vectors is not None for sample in samples):
            batch["vectors"] = [torch.from_numpy(sample.vectors) for sample in samples]
        return batch

    def _tensor(self, image: Image.Image) -> torch.Tensor:
        if self.transform is not None:
            return torch.as_tensor(self.transform(image))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)
