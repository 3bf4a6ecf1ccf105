"""NVIDIA DALI on the CPU: webdataset reader, decoder with fused random crop, resize, flip and normalisation.

`python -m benchmarks.loader_peers.dali_recipe INPUT [--workers N]` with .peers first on the path. Workers are threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from nvidia.dali import fn, pipeline_def, types
from wds2idx import IndexCreator

from benchmarks.loader_peers.inputs import stored_once
from benchmarks.loader_peers.timing import BATCH, CROP_SCALE, MEAN, SIZE, STD, main


@pipeline_def
def pictures(tars: list[str], indexes: list[str]) -> Any:
    """`(B, 3, 224, 224)` float32."""
    jpegs = fn.readers.webdataset(
        paths=tars, index_paths=indexes, ext=["jpg"], random_shuffle=True, initial_fill=1024, dont_use_mmap=False
    )
    images = fn.decoders.image_random_crop(
        jpegs, device="cpu", random_area=list(CROP_SCALE), random_aspect_ratio=[3 / 4, 4 / 3], output_type=types.RGB
    )
    images = fn.resize(images, size=(SIZE, SIZE), interp_type=types.INTERP_LINEAR)
    return fn.crop_mirror_normalize(
        images,
        dtype=types.FLOAT,
        output_layout="CHW",
        mean=[255 * value for value in MEAN],
        std=[255 * value for value in STD],
        mirror=fn.random.coin_flip(),
    )


def batches(folder: Path, workers: int) -> Iterator[np.ndarray]:
    tars = sorted((folder / "jpeg").glob("*.tar"))

    def store(target: Path) -> None:
        for tar in tars:
            with IndexCreator(str(tar), str(target / f"{tar.stem}.idx"), verbose=False) as creator:
                creator.create_index()

    indexes = stored_once(folder, "dali", store)
    pipeline = pictures(
        [str(tar) for tar in tars],
        [str(indexes / f"{tar.stem}.idx") for tar in tars],
        batch_size=BATCH,
        num_threads=max(1, workers),
        device_id=None,
    )
    pipeline.build()
    while True:
        (images,) = pipeline.run()
        yield np.asarray(images.as_tensor())


if __name__ == "__main__":
    main({"jpeg": batches})
