"""Augmentation speed on one CPU core against torchvision's transforms: `python -m benchmarks.augment`.

Batches of 64 stored pictures of 224 x 224 (uint8) to float32 pictures of 224 x 224. Processor time, best of 6.
Measured 2026-11-21, Intel Xeon with AMX, 2 cores that others use too, torch 2.15, images/s on one core. "Before" is
b4b8b36, which computed taps and colour maps on the host; three rounds in turns, the best of each (torchvision: one):

    | recipe                      | shardclip | before | torchvision |
    | crop + flip                 |       999 |    995 |         704 |
    | + colour jitter, grayscale  |       721 |    716 |         187 |
    | + blur                      |       573 |    578 |          95 |
    | evaluation (normalise only) |     2,128 |  2,116 |         862 |
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torchvision.transforms import v2

from trainer.pictures.augment import Augment, Normalize
from trainer.pictures.config import AugmentConfig
from trainer.pictures.normalization import CLIP

BATCH, SIZE = 64, 224


def images_per_second(work: Callable[[], object]) -> int:
    """Best of 6, by processor time: what else runs on the machine counts less."""
    best = float("inf")
    for _ in range(7):  # the first warms up
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return round(BATCH / best)


def main() -> None:
    torch.set_num_threads(1)
    buffer = torch.randint(0, 256, (BATCH, SIZE, SIZE, 3), dtype=torch.uint8)
    images, samples = buffer.permute(0, 3, 1, 2), np.arange(BATCH)
    crop = [v2.RandomResizedCrop(SIZE, scale=(0.5, 1), antialias=True), v2.RandomHorizontalFlip()]
    colour = [v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8), v2.RandomGrayscale(0.2)]
    blur = [v2.RandomApply([v2.GaussianBlur(13, (0.1, 2.0))], 0.5)]
    normalise = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(*map(list, CLIP))]
    recipes: list[tuple[str, AugmentConfig | None, list]] = [
        ("crop + flip", AugmentConfig(), crop),
        ("+ colour jitter, grayscale", AugmentConfig(jitter=0.8, grayscale=0.2), crop + colour),
        ("+ blur", AugmentConfig(jitter=0.8, grayscale=0.2, blur=0.5), crop + colour + blur),
        ("evaluation", None, []),
    ]
    print(f"{'recipe':30} {'shardclip':>10} {'torchvision':>12}   images/s on one core")
    for name, config, transforms in recipes:
        ours = _ours(config, images, samples)
        chain = v2.Compose([*transforms, *normalise])
        theirs = images_per_second(lambda chain=chain: torch.stack([chain(image) for image in images]))  # type: ignore[misc]
        print(f"{name:30} {ours:10} {theirs:12}")


def _ours(config: AugmentConfig | None, images: torch.Tensor, samples: np.ndarray) -> int:
    if config is None:
        normalize = Normalize(SIZE, *CLIP, channels_last=True)
        return images_per_second(lambda: normalize(images))
    augment = Augment(config, SIZE, *CLIP, seed=0, channels_last=True)
    return images_per_second(lambda: augment(images, 0, samples))


if __name__ == "__main__":
    main()
