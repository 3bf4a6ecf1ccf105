"""How a loader is timed: an endless stream of batches, warmed up, then counted for some seconds of wall clock."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

BATCH, SIZE = 256, 224
CROP_SCALE = (0.5, 1.0)  # share of the area that a random crop keeps: the default of our recipes
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's
_WARM_UP_BATCHES, _WARM_UP_S = 6, 1.5  # what loaders prepare ahead while they start must not count


class Images(Protocol):
    """A batch: a tensor or an array."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> object: ...


# (INPUT, number of workers) -> batches without end
Stream = Callable[[Path, int], Iterator[Images]]


def main(streams: Mapping[str, Stream], arguments: list[str] | None = None) -> None:
    """Time one of a file's streams and print `{"samples_per_s": ..., "batch": ...}`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("input", type=Path)
    parser.add_argument("--form", choices=list(streams), default=next(iter(streams)))
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=4.0)
    options = parser.parse_args(arguments)
    print(json.dumps(timed(streams[options.form](options.input.resolve(), options.workers), options.seconds)))


def timed(batches: Iterator[Images], seconds: float) -> dict[str, float | str]:
    """Samples a second of a stream that is warm, and what its batches are."""
    start, warm = time.perf_counter(), 0
    while warm < _WARM_UP_BATCHES or time.perf_counter() < start + _WARM_UP_S:
        images = next(batches)
        warm += 1
    dtype = str(images.dtype).removeprefix("torch.")
    description = f"{' x '.join(map(str, images.shape))} {dtype}"
    del images
    samples, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        samples += len(next(batches))  # type: ignore[arg-type]
    return {"samples_per_s": samples / elapsed, "batch": description}
