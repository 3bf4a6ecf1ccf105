"""Make a shard set of tars that others wrote: `shardclip index-shards FOLDER`; the tars stay as they are.

Samples are jpg, jpeg, png or webp with a txt, or a json that has `caption` or `captions`. Each tar is read once. A new
index gets a name that the published manifest does not have; the new manifest comes last, and makes the new set in one
step. So whatever ends the work before, readers find the set as it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape

from core.cores import available_cores
from core.errors import DataError, ManifestError, ShardclipError, StorageError
from core.locks import lock
from core.manifest import MANIFEST_NAME, ImageSpec, Manifest, ShardEntry, index_name, load_manifest, save_manifest
from core.mapped import mapped
from core.places import expect_no_common_folder
from core.shard_index import (
    IMAGE,
    JSON,
    MAGIC,
    NPY,
    RECORD,
    TXT,
    Member,
    ShardIndex,
    TarSample,
    checksum,
    decode_index,
    encode_index,
    image_id_of,
    scan_tar,
)
from core.shard_set import ShardSet
from core.storage import (
    exists,
    fetch,
    is_local,
    join,
    list_names,
    local,
    publish_bytes,
    read_bytes,
    read_start,
    remove,
    sha256_of,
    size,
    sweep_partials,
)
from shard_builder.build_state import BUILD_NAME, build_bytes
from shard_builder.engines.processes import ProcessesEngine
from shard_builder.fingerprint import fingerprint_of
from shard_builder.progress import progress_bar, spoken_bytes, summary_table
from shard_builder.records import Skip
from shard_builder.rejected import REJECTED_NAME, count_by_reason, rejected_bytes

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
_MARKS = {".idx": MAGIC, ".emb": b"\x93NUMPY"}  # how our files begin; .emb: of sets embedded before there were columns


@dataclass(frozen=True)
class TarTask:
    """One tar to be indexed."""

    url: str
    name: str
    source: str
    cache_dir: Path | None
    published: ShardEntry | None  # what the folder's manifest says of this tar

    def describe(self, position: int) -> str:
        """The sample at `position`, for an error message."""
        return f"sample {position + 1}"


@dataclass(frozen=True)
class TarResult:
    """What a tar holds."""

    entry: ShardEntry | None  # None: not one usable sample
    skipped: tuple[Skip, ...]
    wrote_index: bool


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
        ManifestError: the folder holds a set that shardclip built, or a manifest that cannot be read.
        DamagedError: a tar breaks off or is damaged; a set that was there stays as it was.
        DataError: not one sample has an image and a caption.
    """
    console = console or Console()
    expect_no_common_folder(url, "the folder of tars")
    tars = [name for name in list_names(url) if name.endswith(".tar")]
    if not tars:
        raise StorageError(f"{url}: holds no .tar file. Name the folder with the shards.")
    with _locked(url):
        before = _published(url)
        try:
            results = _index_tars(url, tars, before, workers, cache_dir, console)
        except ShardclipError:
            if before:
                _remove_left_overs(url, before)
            raise
        skipped = [skip for result in results for skip in result.skipped]
        entries = tuple(result.entry for result in results if result.entry)
        if not entries:
            raise DataError(f"{url}: no sample has both an image and a caption ({count_by_reason(skipped)}).")
        manifest = _manifest(split, ImageSpec(size, fit, "mixed", 0), entries, count_by_reason(skipped), before)
        manifest = replace(manifest, fingerprint=ShardSet((url,), (manifest,), cache_dir, verified=False).fingerprint)
        has_changed = _publish(url, manifest, skipped, before)
    if not has_changed and not any(result.wrote_index for result in results):
        console.print(f"[green]already indexed[/]: {escape(url)} holds exactly this, nothing to do.")
    else:
        console.print(summary_table(manifest, [("size", spoken_bytes(sum(e.bytes for e in entries))), ("in", url)]))
    return manifest


def index_tar(task: TarTask, report: Callable[[int], None]) -> TarResult:
    """Write the index of one tar, never over another one that is published; runs in a worker."""
    path = fetch(join(task.url, task.name), task.cache_dir, None)
    rows: list[list[tuple[int, int, int]]] = []
    image_ids: list[int] = []
    skipped: list[Skip] = []
    num_captions = 0
    data = mapped(path)
    for number, sample in enumerate(scan_tar(path)):
        places = _places(sample)
        try:
            captions, image_id = _read_sample(task, sample.key, places, data)
        except _UnusableError as problem:
            skipped.append(Skip(sample.key, task.source, str(problem), task.name))
        else:
            num_captions += captions
            image_ids.append(image_id)
            rows.append([_record(data, places.get(name)) for name in (IMAGE, TXT, JSON)])
        report(number + 1)
    if not rows:
        return TarResult(None, tuple(skipped), False)
    members = tuple(Member(name, task.name) for name in (IMAGE, TXT, JSON))
    index = encode_index(ShardIndex(members, np.array(rows, dtype=RECORD), np.array(image_ids, dtype=np.uint64)))
    sha256 = sha256_of(path)
    if task.published and task.published.sha256 == sha256 and _is_published(task.url, task.published, index):
        return TarResult(task.published, tuple(skipped), False)
    index_sha256 = hashlib.sha256(index).hexdigest()
    name = _unread_name(task, index, index_sha256)
    wrote = _publish_if_other(index, join(task.url, name))
    own_name = "" if name == index_name(task.name) else name
    entry = ShardEntry(task.name, len(rows), num_captions, path.stat().st_size, sha256, index_sha256, index=own_name)
    return TarResult(entry, tuple(skipped), wrote)


def left_overs(url: str, manifest: Manifest) -> list[str]:
    """Our indexes and sidecars that the manifest does not name; other tools' files of such names are not ours."""
    named = {entry.index_name for entry in manifest.shards}
    named |= {entry.embeddings.name for entry in manifest.shards if entry.embeddings}
    unnamed = [name for name in list_names(url) if name not in named]
    marked = [(name, mark) for name in unnamed for end, mark in _MARKS.items() if name.endswith(end)]
    return [name for name, mark in marked if read_start(join(url, name), len(mark)) == mark]


def _published(url: str) -> Manifest | None:
    if not exists(join(url, MANIFEST_NAME)):
        return None
    try:
        manifest = load_manifest(url)
    except ManifestError as error:
        raise ManifestError(f"{error} To index the tars anew, delete that file.") from error
    if manifest.image.codec != "mixed":
        raise ManifestError(f"{url}: was built by shardclip and has its indexes. Check it with `shardclip verify`.")
    return manifest


def _index_tars(
    url: str, tars: Sequence[str], before: Manifest | None, workers: int, cache_dir: Path | None, console: Console
) -> list[TarResult]:
    """What each tar holds, in order."""
    published = {entry.name: entry for entry in before.shards} if before else {}
    source = url.rstrip("/").rsplit("/", 1)[-1]
    tasks = [TarTask(url, name, source, cache_dir, published.get(name)) for name in tars]
    with (
        ProcessesEngine(min(len(tars), workers or available_cores())) as engine,
        progress_bar(console, "samples", total=None) as show,
    ):
        results = {task.name: result for task, result in engine.run(index_tar, tasks, show)}
    return [results[name] for name in tars]


def _manifest(
    split: str,
    image: ImageSpec,
    entries: tuple[ShardEntry, ...],
    skipped: Mapping[str, int],
    before: Manifest | None,
) -> Manifest:
    """The new manifest, without its samples' fingerprint."""
    num_samples = sum(entry.num_samples for entry in entries)
    # Embeddings in sidecars stay as long as every tar has kept its own.
    text_encoder = before.text_encoder if before and all(entry.embeddings for entry in entries) else None
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
    )
    return replace(manifest, build_fingerprint=fingerprint_of(_recipe(manifest)))


def _recipe(manifest: Manifest) -> dict[str, object]:
    shards = [[entry.name, entry.sha256, entry.index_sha256] for entry in manifest.shards]
    encoder = manifest.text_encoder
    return {"adopted": shards, "image": asdict(manifest.image), "text_encoder": encoder and asdict(encoder)}


def _publish(url: str, manifest: Manifest, skipped: Sequence[Skip], before: Manifest | None) -> bool:
    """Publish what differs from what is there, the manifest last, and remove what it does not name.

    Killed before the manifest, `rejected.jsonl` and `build.json` are ahead of it: no reader asks them.

    Returns:
        Whether anything differed.
    """
    rejected = rejected_bytes(skipped)
    build = build_bytes(_recipe(manifest), {REJECTED_NAME: hashlib.sha256(rejected).hexdigest()})
    has_changed = _publish_if_other(rejected, join(url, REJECTED_NAME))
    has_changed |= _publish_if_other(build, join(url, BUILD_NAME))
    if manifest != before:
        save_manifest(manifest, url)
    return _remove_left_overs(url, manifest) or has_changed or manifest != before


def _remove_left_overs(url: str, manifest: Manifest) -> bool:
    names = left_overs(url, manifest)
    for name in names:
        remove(join(url, name))
    return bool(names)


def _is_published(url: str, entry: ShardEntry, index: bytes) -> bool:
    """Whether the published entry says what `index` does; where it names embeddings, that and them."""
    path = join(url, entry.index_name)
    if not exists(path) or hashlib.sha256(data := read_bytes(path)).hexdigest() != entry.index_sha256:
        return False
    if not entry.embeddings:
        return data == index
    sidecar = join(url, entry.embeddings.name)
    if not exists(sidecar) or size(sidecar) != entry.embeddings.bytes:
        return False
    found = decode_index(data, path)
    kept = [column for column, member in enumerate(found.members) if member.name != NPY]
    members = tuple(found.members[column] for column in kept)
    return encode_index(ShardIndex(members, found.records[:, kept], found.image_ids)) == index


def _unread_name(task: TarTask, index: bytes, sha256: str) -> str:
    """A name for the index under which no reader finds another one: the tar's, or that with a part of the hash."""
    if task.published and task.published.index_sha256 == sha256:
        return task.published.index_name  # of the same bytes: the file is missing or damaged
    name = index_name(task.name)
    path = join(task.url, name)
    if not exists(path) or read_bytes(path) == index:
        return name
    return f"{name.removesuffix('.idx')}.{sha256[:8]}.idx"


def _publish_if_other(data: bytes, target: str) -> bool:
    """Publish `data` where it is not there already; whether it was not."""
    if exists(target) and read_bytes(target) == data:
        return False
    publish_bytes(data, target)
    return True


class _UnusableError(Exception):
    """A sample that cannot be adopted; the text is the reason that is counted."""


def _places(sample: TarSample) -> dict[str, tuple[int, int]]:
    """Member name -> (offset, length) of what we take from a sample."""
    image = next((sample.members[ext] for ext in IMAGE_EXTENSIONS if ext in sample.members), None)
    places = {IMAGE: image, TXT: sample.members.get(TXT), JSON: sample.members.get(JSON)}
    return {name: place for name, place in places.items() if place and place[1]}


def _read_sample(task: TarTask, key: str, places: Mapping[str, tuple[int, int]], data: memoryview) -> tuple[int, int]:
    """Number of captions, by the rule of `ShardSet.captions`, and the number of the image."""
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


@contextmanager
def _locked(url: str) -> Iterator[None]:
    if not is_local(url):
        yield
        return
    with lock(local(url) / ".lock", f"index-shards of {url}"):
        sweep_partials(local(url))
        yield
