"""The standard recipe: open_clip's own `get_wds_dataset` over tars, PIL and torchvision transforms.

`python -m benchmarks.loader_peers.webdataset_recipe INPUT [--workers N]` with .peers first on the path: open_clip asks
for an older webdataset than ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import torch
from open_clip_train import data

from benchmarks.loader_peers.augmented import of_pil
from benchmarks.loader_peers.timing import BATCH, main
from core.shard_set import ShardSet


def batches(folder: Path, workers: int) -> Iterator[torch.Tensor]:
    shard_set = ShardSet.open(str(folder / "jpeg"))
    # A buffer that is full after the warm-up: while it fills, two samples are read for one that is given.
    data._SAMPLE_SHUFFLE_SIZE = data._SAMPLE_SHUFFLE_INITIAL = 1000
    last = len(shard_set.shard_sizes) - 1
    arguments = SimpleNamespace(
        train_data=f"{folder}/jpeg/train-{{00000..{last:05d}}}.tar",
        train_num_samples=10**7,  # of an epoch: with resampled shards it has no end within the measurement
        dataset_resampled=True,
        train_data_upsampling_factors=None,
        batch_size=BATCH,
        world_size=1,
        workers=workers,
        seed=0,
    )
    loader = data.get_wds_dataset(arguments, of_pil(), is_train=True, tokenizer=lambda text: [text])
    return (images for _ in count() for images, _ in loader.dataloader)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main({"jpeg": batches})
