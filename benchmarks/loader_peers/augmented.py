"""The augmentation of peers that leave it to their users: crop, flip, tensor, normalisation with torchvision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torchvision import transforms
from torchvision.transforms import v2

from benchmarks.loader_peers.timing import CROP_SCALE, MEAN, SIZE, STD


def of_pil() -> Callable[[Any], torch.Tensor]:
    """PIL image -> `(3, 224, 224)` float32."""
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE, scale=CROP_SCALE),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )


def of_tensors() -> Callable[[torch.Tensor], torch.Tensor]:
    """`(3, H, W)` uint8 -> `(3, 224, 224)` float32."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(SIZE, scale=CROP_SCALE, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(MEAN), list(STD)),
        ]
    )
