"""What a build will take, before it starts: `shardclip plan configs/build/coco2014_train.yaml`."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from rich.console import Console
from rich.table import Table

from core import parts
from core.errors import DataError, StorageError
from core.image import ImageError, decode_into, imaging_library
from core.manifest import ImageSpec
from core.seeding import permutation
from core.storage import read_bytes
from shard_builder.build import expect_places, say_which_library
from shard_builder.caption_cache import CaptionCache
from shard_builder.caption_embeddings import captions_per_s, text_encoder_spec
from shard_builder.config import BuildConfig
from shard_builder.engines import ENGINES
from shard_builder.inputs import read_inputs
from shard_builder.progress import spoken_bytes, spoken_seconds
from shard_builder.records import Record
from shard_builder.rejected import count_by_reason
from shard_builder.writer import prepare_image

SAMPLE = 64  # images and, at most, four times as many captions
MEASURE_S, LEAST = 0.6, 8  # how long images are prepared, and how many at least
DECODE_S = 0.3  # how long decoding is measured
LOADER_SHARE = 0.85  # of a core's time a loader worker spends decoding; the rest reads, checks and hands over
_BLOCK = 512


@dataclass(frozen=True)
class Measured:
    """One core at work on a sample of the images."""

    seconds: float  # to read, decode, resize and encode them
    stored_bytes: list[int]  # of each image that could be used
    failed: dict[str, int]  # reason -> count
    decodes_per_s: float  # of stored images, as the loader decodes them


@dataclass(frozen=True)
class Estimate:
    """What `shardclip plan` says; times in seconds."""

    num_images: int
    num_captions: int
    skipped: dict[str, int]  # known before any image is decoded
    failed_share: float  # of the sampled images that cannot be decoded
    set_bytes: int
    images_per_s: float  # one worker
    captions_to_encode: int
    captions_per_s: float  # 0 when there is none to encode
    decodes_per_s: float  # one loader worker

    def build_s(self, workers: int) -> float:
        """Time of a build with this many workers."""
        text_s = self.captions_to_encode / self.captions_per_s if self.captions_to_encode else 0.0
        return text_s + self.num_images / self.images_per_s / workers

    def loader_workers(self, gpu_images_per_s: float) -> int:
        """Loader workers that keep one GPU busy."""
        return max(1, math.ceil(gpu_images_per_s / (self.decodes_per_s * LOADER_SHARE)))


def estimate_build(config: BuildConfig, gpu_images_per_s: float = 2500.0, console: Console | None = None) -> Estimate:
    """Read the source, measure this machine on a sample, print and return what the build will take.

    Args:
        gpu_images_per_s: what the image tower trains on one GPU; ResNet50, bf16, 224 px: about 2,500 on an A100.

    Raises:
        DataError: the source has no image, or none of the sampled ones can be used.
    """
    console = console or Console()
    expect_places(config)
    inputs = read_inputs(config.source, config.split)
    if not inputs.records:
        raise DataError(f"source '{config.source.name}': has no usable image ({count_by_reason(inputs.skipped)}).")
    chosen = permutation(len(inputs.records), config.seed, "estimate")[:SAMPLE].tolist()
    images = [inputs.records[i].image for i in chosen]
    with parts.build(ENGINES, config.engine, "engine", workers=1) as engine:
        say_which_library(engine.call(imaging_library), console)
        measured = engine.call(measure_images, images, config.image.spec, config.image.max_pixels)
    if not measured.stored_bytes:
        raise DataError(
            f"source '{config.source.name}': none of {len(images)} sampled images can be used ({measured.failed})."
        )
    encoder = text_encoder_spec(config.text_encoder)
    missing = CaptionCache(config.caption_cache, encoder).missing(inputs.captions)
    num_measured = len(measured.stored_bytes) + sum(measured.failed.values())
    kept_share = len(measured.stored_bytes) / num_measured
    expected = Estimate(
        num_images=len(inputs.records),
        num_captions=sum(len(record.captions) for record in inputs.records),
        skipped=count_by_reason(inputs.skipped),
        failed_share=1 - kept_share,
        set_bytes=round(kept_share * _set_bytes(inputs.records, measured.stored_bytes, encoder.embed_dim)),
        images_per_s=num_measured / measured.seconds,
        captions_to_encode=len(missing),
        captions_per_s=0.0,
        decodes_per_s=measured.decodes_per_s,
    )
    console.print(_table(config, expected, gpu_images_per_s))
    if missing:  # the encoder takes seconds to load
        rate = captions_per_s(config.text_encoder, missing, config.text_batch_size)
        expected = replace(expected, captions_per_s=rate)
    console.print(_times(config, expected))
    return expected


def measure_images(images: Sequence[str], spec: ImageSpec, max_pixels: int) -> Measured:
    """Do a worker's work on `images`, as many as `MEASURE_S` is enough for, and take the time; runs in a worker."""
    stored: list[bytes] = []
    failed: Counter[str] = Counter()
    start = time.perf_counter()
    for image in images:
        if len(stored) >= LEAST and time.perf_counter() - start > MEASURE_S:
            break
        try:
            stored.append(prepare_image(read_bytes(image), spec, max_pixels).data)
        except ImageError as error:
            failed[error.reason] += 1
        except StorageError:
            failed["missing_image"] += 1
    seconds = time.perf_counter() - start
    return Measured(seconds, [len(data) for data in stored], dict(failed), _decodes_per_s(stored, spec))


def _decodes_per_s(stored: Sequence[bytes], spec: ImageSpec) -> float:
    if not stored:
        return 0.0
    pixels = np.empty((spec.size, spec.size, 3), np.uint8)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < DECODE_S:
        decode_into(memoryview(stored[count % len(stored)]), spec, pixels)
        count += 1
    return count / (time.perf_counter() - start)


def _set_bytes(records: Sequence[Record], stored_bytes: Sequence[int], embed_dim: int) -> float:
    """Bytes of the tars, headers and padding included, and their indexes."""
    image = sum(_in_tar(size) for size in stored_bytes) / len(stored_bytes)
    texts = 0
    for record in records:
        info = 160 + sum(len(caption.encode()) + 4 for caption in record.captions)  # json: keys, ids, quotes
        texts += _in_tar(len(record.captions[0])) + _in_tar(info) + _in_tar(128 + 2 * embed_dim * len(record.captions))
    return len(records) * (image + 88) + texts


def _in_tar(size: int) -> int:
    return _BLOCK + size + -size % _BLOCK


def _table(config: BuildConfig, expected: Estimate, gpu_images_per_s: float) -> Table:
    """What is known without the text encoder."""
    table = _grid()
    table.add_row("images", f"{expected.num_images:,}")
    for reason, count in expected.skipped.items():
        table.add_row("left out", f"[yellow]{count:,} {reason}[/]")
    if expected.failed_share:
        table.add_row("", f"[yellow]and about {expected.failed_share:.1%}, which cannot be decoded[/]")
    table.add_row("captions", f"{expected.num_captions:,}")
    to_encode = f"{expected.captions_to_encode:,}"
    table.add_row("to encode", to_encode if expected.captions_to_encode else "0: all are in the cache")
    table.add_row("disk", spoken_bytes(expected.set_bytes))
    table.add_row("images/s", f"{expected.images_per_s:,.0f} by each worker")
    table.add_row(
        "training",
        f"{expected.loader_workers(gpu_images_per_s)} loader workers keep a GPU busy that trains "
        f"{gpu_images_per_s:,.0f} images/s (one core decodes {expected.decodes_per_s:,.0f} images/s)",
    )
    return table


def _times(config: BuildConfig, expected: Estimate) -> Table:
    """How long it takes, once it is known how quickly captions are encoded."""
    table = _grid()
    if expected.captions_to_encode:
        text_s = expected.captions_to_encode / expected.captions_per_s
        table.add_row("captions/s", f"{expected.captions_per_s:,.0f}: {spoken_seconds(text_s)} for all")
    for workers in sorted({1, 4, 16, config.num_workers}):
        build_time = spoken_seconds(expected.build_s(workers))
        here = "   <- this recipe, here" if workers == config.num_workers else ""
        table.add_row("time" if workers == 1 else "", f"{workers:>3} workers: {build_time}{here}")
    return table


def _grid() -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_column(style="dim", justify="right", min_width=10)
    table.add_column()
    return table
