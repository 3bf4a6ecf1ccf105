"""A folder of files with torchvision: `ImageFolder`, its transforms and PyTorch's `DataLoader`.

`python -m benchmarks.loader_peers.folder INPUT [--workers N]`
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils.data import DataLoader, RandomSampler
from torchvision.datasets import ImageFolder

from benchmarks.loader_peers.augmented import of_pil
from benchmarks.loader_peers.inputs import samples, stored_once
from benchmarks.loader_peers.timing import BATCH, main


def batches(folder: Path, workers: int) -> Iterator[torch.Tensor]:
    def store(target: Path) -> None:
        (target / "images").mkdir()
        for number, sample in enumerate(samples(folder)):
            (target / "images" / f"{number:09d}.jpg").write_bytes(sample.jpeg)

    dataset = ImageFolder(str(stored_once(folder, "folder", store)), transform=of_pil())
    endless = RandomSampler(dataset, replacement=True, num_samples=10**9)
    loader = DataLoader(dataset, batch_size=BATCH, sampler=endless, num_workers=workers)
    return (images for images, _ in loader)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main({"jpeg": batches})
