"""Make shard sets of tars that others wrote (img2dataset, open_clip users, any WebDataset): the tars stay as they are.

`index_shards` writes NAME.idx beside each tar, rejected.jsonl, build.json and the manifest. Samples are jpg, jpeg, png
or webp with a txt, or a json that has `caption` or `captions`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from core.errors import DataError, StorageError
from core.locks import lock
from core.manifest import (
    ImageSpec,
    Manifest,
    ShardEntry,
    index_name,
    save_manifest,
)
from core.mapped import mapped
from core.shard_index import (
    IMAGE,
    JSON,
    RECORD,
    TXT,
    Member,
    ShardIndex,
    TarSample,
    checksum,
    encode_index,
    image_id_of,
    scan_tar,
)
from core.storage import fetch, is_local, join, list_names, local, publish_bytes, sha256_of, sweep_partials
from shard_builder.build_state import save_build
from shard_builder.engines.processes import ProcessesEngine, available_cores
from shard_builder.fingerprint import fingerprint_of
from shard_builder.progress import progress_bar, spoken_bytes, summary_table
from shard_builder.records import Skip
from shard_builder.rejected import REJECTED_NAME, count_by_reason, write_rejected

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
_ABSENT = (0, 0, 0)


@dataclass(frozen=True)
class AdoptTask:
    """One tar to be indexed."""

    url: str
    name: str
    source: str
    cache_dir: Path | None

    def describe(self, position: int) -> str:
        return f"sample {position + 1}"


@dataclass(frozen=True)
class AdoptResult:
    """What a tar holds."""

    entry: ShardEntry | None  # None: not one usable sample
    skipped: tuple[Skip, ...]


def index_shards(
    url: str,
    split: str = "train",
    size: int = 224,
    fit: str = "crop",
    workers: int = 0,
    cache_dir: Path | None = None,
    console: Console | None = None,
) -> Manifest:
    """Index every tar in the folder and write the manifest; run it again when tars have changed.

    Args:
        size: pixels; images of any size are fitted to squares of it when they are read.

    Raises:
        StorageError: no folder, or no tar in it.
        DamagedError: a tar breaks off or is damaged.
        DataError: not one sample has an image and a caption.
    """
    console = console or Console()
    tars = [name for name in list_names(url) if name.endswith(".tar")]
    if not tars:
        raise StorageError(f"{url}: holds no .tar file. Name the folder with the shards.")
    tasks = [AdoptTask(url, name, _source(url), cache_dir) for name in tars]
    with _locked(url, "index-shards"), ProcessesEngine(min(len(tars), workers or available_cores())) as engine:
        with progress_bar(console, "samples", total=None) as show:
            results = {task.name: result for task, result in engine.run(index_tar, tasks, show)}
        ordered = [results[name] for name in tars]
        skipped = [skip for result in ordered for skip in result.skipped]
        entries = tuple(result.entry for result in ordered if result.entry)
        if not entries:
            raise DataError(f"{url}: no sample has both an image and a caption ({count_by_reason(skipped)}).")
        files = {REJECTED_NAME: write_rejected(url, skipped)}
        manifest = _publish(url, split, ImageSpec(size, fit, "mixed", 0), entries, count_by_reason(skipped), files)
    console.print(summary_table(manifest, [("size", spoken_bytes(sum(e.bytes for e in entries))), ("in", url)]))
    return manifest


def index_tar(task: AdoptTask, report: Callable[[int], None]) -> AdoptResult:
    """Write `NAME.idx` for one tar, without embeddings; runs in a worker."""
    path = fetch(join(task.url, task.name), task.cache_dir, None)
    rows: list[list[tuple[int, int, int]]] = []
    image_ids: list[int] = []
    skipped: list[Skip] = []
    num_captions = 0
    data = mapped(path)
    for number, sample in enumerate(scan_tar(path)):
        places = _places(sample)
        try:
            captions, group = _read_sample(task, sample.key, places, data)
        except _UnusableError as problem:
            skipped.append(Skip(sample.key, task.source, str(problem), task.name))
        else:
            num_captions += captions
            image_ids.append(group)
            rows.append([_record(data, places.get(name)) for name in (IMAGE, TXT, JSON)])
        report(number + 1)
    if not rows:
        return AdoptResult(None, tuple(skipped))
    members = tuple(Member(name, task.name) for name in (IMAGE, TXT, JSON))
    index = ShardIndex(members, np.array(rows, dtype=RECORD), np.array(image_ids, dtype=np.uint64))
    index_sha256 = publish_bytes(encode_index(index), join(task.url, index_name(task.name)))
    entry = ShardEntry(task.name, len(rows), num_captions, path.stat().st_size, sha256_of(path), index_sha256)
    return AdoptResult(entry, tuple(skipped))


class _UnusableError(Exception):
    """A sample that cannot be adopted; the text is the reason that is counted."""


def _places(sample: TarSample) -> dict[str, tuple[int, int]]:
    """Member name -> (offset, length) of what we take from a sample."""
    image = next((sample.members[ext] for ext in IMAGE_EXTENSIONS if ext in sample.members), None)
    places = {IMAGE: image, TXT: sample.members.get(TXT), JSON: sample.members.get(JSON)}
    return {name: place for name, place in places.items() if place and place[1]}


def _read_sample(task: AdoptTask, key: str, places: Mapping[str, tuple[int, int]], data: memoryview) -> tuple[int, int]:
    """Number of captions, by the rule of `ShardSet.captions`, and the group."""
    if IMAGE not in places:
        raise _UnusableError("no_image")
    texts = {name: bytes(data[offset : offset + length]) for name, (offset, length) in places.items() if name != IMAGE}
    try:
        info = json.loads(texts.get(JSON, b"{}"))
        text = texts.get(TXT, b"").decode()
    except ValueError as error:
        raise _UnusableError("unreadable_caption") from error
    if not isinstance(info, dict):
        raise _UnusableError("unreadable_caption")
    captions = info.get("captions") or [text or info.get("caption")]
    if not isinstance(captions, list) or not all(isinstance(c, str) and c.strip() for c in captions):
        raise _UnusableError("no_caption")
    # img2dataset knows an image by its URL: the same URL twice is the same image, with another caption perhaps.
    image_id = info.get("image_id") or info.get("url") or f"{task.name}/{key}"
    return len(captions), image_id_of(str(info.get("source") or task.source), str(image_id))


def _record(data: memoryview, place: tuple[int, int] | None) -> tuple[int, int, int]:
    if place is None:
        return (0, 0, 0)
    offset, length = place
    return offset, checksum(data[offset : offset + length]), length


def _publish(
    url: str,
    split: str,
    image: ImageSpec,
    entries: tuple[ShardEntry, ...],
    skipped: Mapping[str, int],
    files: Mapping[str, str],
) -> Manifest:
    """Publish `build.json`, and last the manifest."""
    num_samples = sum(entry.num_samples for entry in entries)
    settings = {"image": asdict(image), "text_encoder": None}
    shards = [[entry.name, entry.sha256, entry.index_sha256] for entry in entries]
    recipe = {"adopted": shards, **settings}
    manifest = Manifest(
        split=split,
        num_samples=num_samples,
        num_captions=sum(entry.num_captions for entry in entries),
        image=image,
        text_encoder=None,
        classes=(),
        shards=entries,
        num_inputs=num_samples + sum(skipped.values()),
        skipped=dict(skipped),
        build_fingerprint=fingerprint_of(recipe),
    )
    save_build(url, recipe, files)
    save_manifest(manifest, url)
    return manifest


@contextmanager
def _locked(url: str, purpose: str) -> Iterator[None]:
    if not is_local(url):
        yield
        return
    with lock(local(url) / ".lock", f"{purpose} of {url}"):
        sweep_partials(local(url))
        yield


def _source(url: str) -> str:
    return url.rstrip("/").rsplit("/", 1)[-1]
