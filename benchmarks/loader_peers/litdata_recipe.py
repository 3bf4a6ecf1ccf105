"""litdata: chunks of the same JPEG bytes, decoded by its own serializer (torchvision), torchvision transforms.

`python -m benchmarks.loader_peers.litdata_recipe INPUT [--workers N]` with .peers first on the path.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import torch
from litdata import StreamingDataLoader, StreamingDataset, optimize
from PIL import Image

from benchmarks.loader_peers.augmented import of_tensors
from benchmarks.loader_peers.inputs import Sample, samples, stored_once
from benchmarks.loader_peers.timing import BATCH, main


def _stored(sample: Sample) -> dict[str, Any]:
    # litdata keeps the bytes of a PIL image that comes from a JPEG as they are.
    return {"image": Image.open(io.BytesIO(sample.jpeg)), "caption": sample.caption}


class Photographs(StreamingDataset):
    """Augments what the chunks hold, as litdata's examples do."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder), shuffle=True)
        self._augment = of_tensors()

    def __getitem__(self, index: Any) -> tuple[torch.Tensor, str]:
        stored = super().__getitem__(index)
        return self._augment(stored["image"]), stored["caption"]


def batches(folder: Path, workers: int) -> Iterator[torch.Tensor]:
    def store(target: Path) -> None:
        optimize(_stored, list(samples(folder)), str(target), chunk_bytes="64MB", num_workers=1)

    dataset = Photographs(stored_once(folder, "litdata", store))
    loader = StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers, drop_last=True)
    return (images for _ in count() for images, _ in loader)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main({"jpeg": batches})
