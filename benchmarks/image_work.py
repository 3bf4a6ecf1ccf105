"""Resizing pictures as the builder does and as others do: one contender a function; torch-free, for worker processes.

Each takes the files' bytes and returns stored JPEGs (square, centre crop, the same size and quality).
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from core.image import _decode, encode_jpeg, fit_image
from core.manifest import ImageSpec
from shard_builder.writer import ShardTask, prepare_image, write_shard

QUALITY = 95
MAX_PIXELS = 100_000_000


def read_files(paths: Sequence[str]) -> list[bytes]:
    return [Path(path).read_bytes() for path in paths]


def ours(files: Sequence[bytes], size: int) -> list[bytes]:
    """The builder's own function: decode by the rules, fit, encode, measure the original."""
    spec = ImageSpec(size, "crop", "jpeg", QUALITY)
    return [prepare_image(data, spec, MAX_PIXELS).data for data in files]


def img2dataset(files: Sequence[bytes], size: int) -> list[bytes]:
    """img2dataset's Resizer as it is called by its worker, area averaging (its default for making smaller)."""
    from img2dataset.resizer import Resizer

    resize = Resizer(size, "center_crop", resize_only_if_bigger=False, encode_quality=QUALITY)
    stored = []
    for data in files:
        picture, *_, error = resize(io.BytesIO(data))
        if error:
            raise RuntimeError(error)
        stored.append(picture)
    return stored


def opencv(files: Sequence[bytes], size: int) -> list[bytes]:
    """What one writes by hand with OpenCV: crop, then area averaging."""
    import cv2

    cv2.setNumThreads(1)
    stored = []
    for data in files:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        side = min(picture.shape[:2])
        top, left = ((length - side) // 2 for length in picture.shape[:2])
        picture = picture[top : top + side, left : left + side]
        method = cv2.INTER_AREA if side > size else cv2.INTER_LANCZOS4
        small = cv2.resize(picture, (size, size), interpolation=method)
        stored.append(cv2.imencode(".jpeg", small, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes())
    return stored


WORK: dict[str, Callable[[Sequence[bytes], int], list[bytes]]] = {
    "ours": ours,
    "img2dataset": img2dataset,
    "opencv": opencv,
}


def images_per_second(name: str, paths: Sequence[str], size: int) -> float:
    """Speed of a contender from bytes in memory to bytes in memory."""
    files = read_files(paths)
    start = time.perf_counter()
    WORK[name](files, size)
    return len(files) / (time.perf_counter() - start)


def stored_by(name: str, paths: Sequence[str], size: int) -> list[bytes]:
    return WORK[name](read_files(paths), size)


def whole_builder_per_second(task: ShardTask) -> float:
    """Speed of the builder's task for a shard: files on disk to tar and index on disk, hashed and synced."""
    start = time.perf_counter()
    result = write_shard(task, lambda position: None)
    assert result.entry and not result.skipped
    return len(task.plan.records) / (time.perf_counter() - start)


def seconds_of_parts(paths: Sequence[str], size: int) -> dict[str, float]:
    """Seconds an image of decoding, resizing and encoding alone, as the builder does them."""
    seconds = dict.fromkeys(("decode", "resize", "encode"), 0.0)
    files = read_files(paths)
    for data in files:
        times = [time.perf_counter()]
        decoded, _ = _decode(data, MAX_PIXELS, size)
        times.append(time.perf_counter())
        fitted = fit_image(decoded, size, "crop")
        times.append(time.perf_counter())
        encode_jpeg(fitted, QUALITY)
        times.append(time.perf_counter())
        for name, start, end in zip(seconds, times, times[1:]):
            seconds[name] += (end - start) / len(files)
    return seconds
