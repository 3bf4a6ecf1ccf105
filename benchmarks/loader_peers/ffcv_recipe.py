"""FFCV: a .beton of the same JPEG bytes or of their pixels, its own random-resized-crop decoder and flip, compiled.

`python -m benchmarks.loader_peers.ffcv_recipe INPUT --form jpg|raw [--workers N]` with .peers first on the path.
Workers are threads. Batches are uint8: FFCV's users convert and normalise on the device.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.decoders import RandomResizedCropRGBImageDecoder
from ffcv.fields.rgb_image import IMAGE_MODES
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import RandomHorizontalFlip, ToTensor, ToTorchImage
from ffcv.writer import DatasetWriter

from benchmarks.loader_peers.inputs import STORED_SIZE, pixels, samples, stored_once
from benchmarks.loader_peers.timing import BATCH, CROP_SCALE, SIZE, main
from core.shard_set import ShardSet


class StoredJpegs(RGBImageField):
    """Takes JPEG bytes as they are; FFCV's own field would encode the pixels once more."""

    def encode(self, destination: Any, jpeg: bytes, malloc: Any) -> None:
        destination["mode"] = IMAGE_MODES["jpg"]
        destination["height"] = destination["width"] = STORED_SIZE
        destination["data_ptr"], storage = malloc(len(jpeg))
        storage[:] = np.frombuffer(jpeg, np.uint8)


def _write(path: Path, images: Sequence[Any], field: RGBImageField) -> None:
    pairs = [(image, number) for number, image in enumerate(images)]
    writer = DatasetWriter(str(path), {"image": field, "number": IntField()}, num_workers=1)
    writer.from_indexed_dataset(pairs)


def batches(folder: Path, workers: int, form: str) -> Iterator[torch.Tensor]:
    def store(target: Path) -> None:
        if form == "jpg":
            _write(target / "images.beton", [sample.jpeg for sample in samples(folder)], StoredJpegs())
        else:
            _write(target / "images.beton", list(pixels(folder)), RGBImageField("raw"))

    path = stored_once(folder, f"ffcv-{form}", store) / "images.beton"
    num_samples = len(ShardSet.open(str(folder / "jpeg")))
    loader = Loader(
        str(path),
        batch_size=BATCH,
        num_workers=max(1, workers),
        os_cache=True,
        order=OrderOption.RANDOM,
        custom_fields={"image": RGBImageField} if form == "jpg" else {},
        indices=np.tile(np.arange(num_samples, dtype=np.uint64), 100),  # each epoch begins with new, unmapped buffers
        pipelines={
            "image": [
                RandomResizedCropRGBImageDecoder((SIZE, SIZE), scale=CROP_SCALE),
                RandomHorizontalFlip(),
                ToTensor(),
                ToTorchImage(),
            ]
        },
    )
    return (images for _ in count() for images, _ in loader)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main({"jpg": partial(batches, form="jpg"), "raw": partial(batches, form="raw")})
    sys.stdout.flush()
    os._exit(0)  # after its writer has run in a process, the interpreter waits at exit for what never ends
