"""mosaicml-streaming: MDS shards of the same JPEG bytes, its own `jpeg` column (PIL), torchvision transforms.

`python -m benchmarks.loader_peers.mosaic_recipe INPUT [--workers N]` with .peers first on the path.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import torch
from PIL import Image
from streaming import MDSWriter, StreamingDataLoader, StreamingDataset

from benchmarks.loader_peers.augmented import of_pil
from benchmarks.loader_peers.inputs import samples, stored_once
from benchmarks.loader_peers.timing import BATCH, main


class Photographs(StreamingDataset):
    """Augments what the shards hold, as mosaicml's examples do."""

    def __init__(self, folder: Path) -> None:
        super().__init__(local=str(folder), shuffle=True, batch_size=BATCH, epoch_size=10**6)  # epochs start slowly
        self._augment = of_pil()

    def __getitem__(self, index: Any) -> tuple[torch.Tensor, str]:
        stored = super().__getitem__(index)
        return self._augment(stored["image"]), stored["caption"]


def batches(folder: Path, workers: int) -> Iterator[torch.Tensor]:
    def store(target: Path) -> None:
        with MDSWriter(out=str(target), columns={"image": "jpeg", "caption": "str"}) as writer:
            for sample in samples(folder):
                with NamedTemporaryFile(suffix=".jpg") as file:  # only of a file are the bytes kept as they are
                    file.write(sample.jpeg)
                    file.flush()
                    writer.write({"image": Image.open(file.name), "caption": sample.caption})

    dataset = Photographs(stored_once(folder, "mosaic", store))
    loader = StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers, drop_last=True)
    return (images for _ in count() for images, _ in loader)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main({"jpeg": batches})
