"""shardclip's loader: whole stored pictures, uint8, ready to be copied; and what its crop costs on the CPU.

`python -m benchmarks.loader_peers.ours INPUT --form jpeg|raw|augment|jpeg+augment [--workers N]`
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import torch

from benchmarks.loader_peers.timing import BATCH, CROP_SCALE, SIZE, main
from core.shard_set import ShardSet
from trainer.data.batch import Batch
from trainer.data.loader import TrainLoader
from trainer.pictures.augment import Augment
from trainer.pictures.config import AugmentConfig
from trainer.pictures.normalization import CLIP


def batches(url: str, workers: int) -> Iterator[Batch]:
    """Batches of one epoch after another."""
    loader = TrainLoader(ShardSet.open(url), global_batch_size=BATCH, num_workers=workers)
    for epoch in count():
        yield from loader.epoch(epoch)


def augmented(batches: Iterator[Batch]) -> Iterator[torch.Tensor]:
    """What training does on the device, here on the CPU: crop, flip, normalise."""
    augment = Augment(AugmentConfig(crop_scale=CROP_SCALE), SIZE, *CLIP, seed=0, channels_last=True)
    for batch in batches:
        yield augment(batch.images, batch.epoch, batch.samples)


def jpeg(folder: Path, workers: int) -> Iterator[torch.Tensor]:
    return (batch.images for batch in batches(str(folder / "jpeg"), workers))


def raw(folder: Path, workers: int) -> Iterator[torch.Tensor]:
    return (batch.images for batch in batches(str(folder / "raw"), workers))


def augment_alone(folder: Path, workers: int) -> Iterator[torch.Tensor]:
    batch = next(batches(str(folder / "jpeg"), workers))
    return augmented(batch for _ in count())


def jpeg_and_augment(folder: Path, workers: int) -> Iterator[torch.Tensor]:
    return augmented(batches(str(folder / "jpeg"), workers))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main({"jpeg": jpeg, "raw": raw, "augment": augment_alone, "jpeg+augment": jpeg_and_augment})
