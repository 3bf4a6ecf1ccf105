"""Make shard sets of tars that others wrote (img2dataset, open_clip users, any WebDataset): the tars stay as they are.

`index_shards` writes NAME.idx beside each tar, rejected.jsonl, build.json and the manifest; `embed_shards` adds
NAME.emb with the caption embeddings. Samples are jpg, jpeg, png or webp with a txt, or a json that has `caption` or
`captions`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from rich.console import Console

from core.config import Choice
from core.errors import DamagedError, DataError, ManifestError, StorageError
from core.locks import lock
from core.manifest import (
    ImageSpec,
    Manifest,
    ShardEntry,
    SidecarEntry,
    TextEncoderSpec,
    index_name,
    load_manifest,
    save_manifest,
)
from core.mapped import mapped
from core.shard_index import (
    IMAGE,
    JSON,
    NPY,
    RECORD,
    TXT,
    Member,
    ShardIndex,
    TarSample,
    checksum,
    encode_index,
    image_id_of,
    read_index,
    scan_tar,
)
from core.shard_set import ShardSet
from core.storage import fetch, is_local, join, list_names, local, publish_bytes, sha256_of, sweep_partials
from shard_builder.build_state import load_build, save_build
from shard_builder.caption_cache import CaptionCache
from shard_builder.caption_embeddings import embed_with_progress, text_encoder_spec
from shard_builder.engines.processes import ProcessesEngine, available_cores
from shard_builder.fingerprint import fingerprint_of
from shard_builder.progress import progress_bar, spoken_bytes, summary_table
from shard_builder.records import Skip
from shard_builder.rejected import REJECTED_NAME, count_by_reason, write_rejected
from shard_builder.writer import npy_bytes

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


def embed_shards(
    url: str,
    text_encoder: Choice,
    batch_size: int = 256,
    cache_dir: Path = Path("~/.cache/shardclip"),
    console: Console | None = None,
) -> Manifest:
    """Write the caption embeddings of an indexed folder into sidecars, NAME.emb, and name them in index and manifest.

    Killed in between, it leaves indexes that the manifest does not fit (readers refuse them); run it again.

    Raises:
        ManifestError: the folder is not indexed, or is a set that shardclip built.
        DamagedError: a tar is not the one that was indexed.
    """
    console = console or Console()
    cache_dir = cache_dir.expanduser()
    with _locked(url, "embed"):
        manifest = load_manifest(url)
        if manifest.image.codec != "mixed":
            raise ManifestError(f"{url}: was built by shardclip and has embeddings. Build it again for others.")
        files = load_build(url)["files"]
        manifest = replace(manifest, shards=tuple(_indexed(url, entry, cache_dir) for entry in manifest.shards))
        shard_set = ShardSet((url,), (manifest,), cache_dir, verified=True)
        with progress_bar(console, "samples", total=len(shard_set)) as show:
            captions = []
            for sample in range(len(shard_set)):
                captions.append(shard_set.captions(sample))
                show(sample + 1)
        encoder = text_encoder_spec(text_encoder)
        distinct = sorted({caption for own in captions for caption in own})
        embed_with_progress(text_encoder, encoder, distinct, cache_dir / "captions", batch_size, console)
        cache = CaptionCache(cache_dir / "captions", encoder)
        of_sample = iter(captions)
        entries = tuple(
            _write_sidecar(url, entry, [cache.lookup(own) for own in islice(of_sample, entry.num_samples)], cache_dir)
            for entry in manifest.shards
        )
        manifest = _publish(url, manifest.split, manifest.image, entries, manifest.skipped, files, encoder)
    console.print(f"{manifest.num_captions:,} captions of {url} embedded by {manifest.text_encoder}")
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


def _indexed(url: str, entry: ShardEntry, cache_dir: Path) -> ShardEntry:
    """The entry, its index made again where a killed `embed` left another one than the manifest names."""
    path = fetch(join(url, index_name(entry.name)), None if is_local(url) else cache_dir, None)
    if path.is_file() and sha256_of(path) == entry.index_sha256:
        return entry
    again = index_tar(AdoptTask(url, entry.name, _source(url), cache_dir), lambda position: None).entry
    if again is None or (again.sha256, again.num_samples) != (entry.sha256, entry.num_samples):
        raise DamagedError(f"{join(url, entry.name)}: is not the tar that was indexed. Index it again.")
    return again


def _write_sidecar(url: str, entry: ShardEntry, embeddings: Sequence[np.ndarray], cache_dir: Path) -> ShardEntry:
    name = entry.name.removesuffix(".tar") + ".emb"
    blobs = [npy_bytes(array) for array in embeddings]
    sha256 = publish_bytes(b"".join(blobs), join(url, name))
    index = read_index(fetch(join(url, index_name(entry.name)), cache_dir, entry.index_sha256))
    kept = [column for column, member in enumerate(index.members) if member.name != NPY]
    offsets = np.cumsum([0, *map(len, blobs)])
    column = np.array([(o, checksum(b), len(b)) for o, b in zip(offsets, blobs)], dtype=RECORD)
    members = (*(index.members[c] for c in kept), Member(NPY, name))
    new = ShardIndex(members, np.column_stack([index.records[:, kept], column]), index.image_ids)
    index_sha256 = publish_bytes(encode_index(new), join(url, index_name(entry.name)))
    return replace(entry, index_sha256=index_sha256, embeddings=SidecarEntry(name, int(offsets[-1]), sha256))


def _publish(
    url: str,
    split: str,
    image: ImageSpec,
    entries: tuple[ShardEntry, ...],
    skipped: Mapping[str, int],
    files: Mapping[str, str],
    text_encoder: TextEncoderSpec | None = None,
) -> Manifest:
    """Publish `build.json`, and last the manifest."""
    num_samples = sum(entry.num_samples for entry in entries)
    settings = {"image": asdict(image), "text_encoder": text_encoder and asdict(text_encoder)}
    shards = [[entry.name, entry.sha256, entry.index_sha256] for entry in entries]
    recipe = {"adopted": shards, **settings}
    manifest = Manifest(
        split=split,
        num_samples=num_samples,
        num_captions=sum(entry.num_captions for entry in entries),
        image=image,
        text_encoder=text_encoder,
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
