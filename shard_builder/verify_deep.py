"""What the webdataset library reads from a set against what our own reader gives: `shardclip verify SET --deep`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from core.image import decode_into
from core.shard_index import IMAGE, JSON, NPY, TXT
from core.shard_set import ShardSet
from core.storage import fetch, join
from core.webdataset_library import KEY, decoded, raw_samples
from shard_builder.progress import progress_bar

Difference = tuple[str, str, str]  # file, sample, what
_NO_PICTURES = (TXT, JSON, NPY)
_MOST_LEVELS = 4  # by which two JPEG decoders may differ in a pixel, of 255


def differences(url: str, cache_dir: Path | None, console: Console) -> list[Difference]:
    """Every sample that the library does not read as our reader does, of a set that is sound in itself.

    In this process: the library brings torch, which the builder's workers never load.
    """
    ours = ShardSet.open(url, cache_dir, text="")
    found: list[Difference] = []
    first = 0
    with progress_bar(console, "samples through webdataset", total=len(ours)) as show:
        for entry in ours.manifests[0].shards:
            samples = range(first, first + entry.num_samples)
            tar = fetch(join(url, entry.name), cache_dir, entry.sha256)
            found += _of_shard(ours, samples, tar, show)
            first = samples.stop
    return found


def _of_shard(ours: ShardSet, samples: range, tar: Path, show: Callable[[int], None]) -> Iterator[Difference]:
    place = samples.start
    for sample in raw_samples(tar):
        if place == samples.stop or sample[KEY] != ours.key(place):
            continue  # one that the index leaves out, as of adopted tars; a missed one is found below
        for what in _differing(ours, place, sample):
            yield tar.name, sample[KEY], what
        place += 1
        show(place)
    if place < samples.stop:
        yield tar.name, ours.key(place), "the webdataset library does not come to this sample"


def _differing(ours: ShardSet, place: int, sample: dict[str, Any]) -> Iterator[str]:
    """What is read otherwise: bytes first, then what is made of them."""
    names = ours.member_names(place)
    pictures = {name: data for name, data in sample.items() if name not in _NO_PICTURES and isinstance(data, bytes)}
    theirs = {name: sample.get(name, b"") for name in names if name != IMAGE}
    for name, data in theirs.items():
        if bytes(ours.member(place, name)) != data:
            yield f"the webdataset library reads another {name}"
            return
    extension = next((name for name, data in pictures.items() if data == ours.member(place, IMAGE)), None)
    if extension is None:
        yield "the webdataset library reads another image"
        return
    spoken = decoded({extension: sample[extension], **{n: d for n, d in theirs.items() if d}}, "rgb8")
    if JSON in spoken and spoken[JSON] != ours.info(place):
        yield "the webdataset library decodes another json"
    if NPY in spoken and not np.array_equal(spoken[NPY], ours.embeddings(place)):
        yield "the webdataset library decodes other caption embeddings"
    if ours.image.codec != "mixed" and not _alike(ours, place, spoken[extension]):
        yield "the webdataset library decodes another picture"


def _alike(ours: ShardSet, place: int, pixels: np.ndarray) -> bool:
    own = np.empty((ours.image.size, ours.image.size, 3), np.uint8)
    decode_into(ours.member(place, IMAGE), ours.image, own)
    return pixels.shape == own.shape and int(np.abs(pixels.astype(int) - own).max()) <= _MOST_LEVELS
