"""Check every byte of a shard set against what it says of itself: `shardclip verify FOLDER`. Finds every fault."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from core.columns import LABELS, ColumnHead, column_names
from core.cores import available_cores
from core.errors import DamagedError, ManifestError, StorageError
from core.image import ImageError, decode_into
from core.manifest import MANIFEST_NAME, ImageSpec, Manifest, ShardEntry, load_manifest, mended_by
from core.mapped import mapped
from core.shard_index import (
    IMAGE,
    JSON,
    NPY,
    TXT,
    ShardIndex,
    TarSample,
    checksum,
    image_id_of,
    read_index,
    samples_fingerprint,
    scan_tar,
)
from core.shard_set import decode_embeddings
from core.spoken import counted
from core.storage import PARTIAL_PREFIX, exists, fetch, join, list_names, sha256_of
from shard_builder.build_state import BUILD_NAME, STATE_NAME, load_build
from shard_builder.contact_sheet import CONTACT_SHEET_NAME
from shard_builder.cut_captions import CUT_NAME
from shard_builder.engines.processes import ProcessesEngine
from shard_builder.fingerprint import fingerprint_of
from shard_builder.index_tars import left_overs
from shard_builder.progress import progress_bar
from shard_builder.rejected import REJECTED_NAME, count_by_reason, read_rejected
from shard_builder.verify_columns import UNIT_TOLERANCE, check_columns, columns_mended_by, published_labels
from shard_builder.verify_deep import differences

AGAIN = " (run `shardclip index-shards` again: it mends this)"
_IS_MISSING, _UNDECODABLE = "is missing", "the image cannot be decoded"
SHOWN_PER_FILE = 20  # of the printed table; `verify` returns all
_UNREADABLE = (StorageError, ValueError, KeyError, TypeError, AttributeError)  # of a listing


@dataclass(frozen=True, order=True)
class Fault:
    """Something in a set that is not as it should be."""

    file: str
    sample: str  # key in the tar; "" where the file as a whole is meant
    what: str


@dataclass(frozen=True)
class ShardCheck:
    """The task of one worker."""

    url: str
    entry: ShardEntry
    image: ImageSpec
    embed_dim: int  # 0: the set has no embeddings
    cache_dir: Path | None

    @property
    def name(self) -> str:
        return self.entry.name

    def describe(self, position: int) -> str:
        return f"sample {position + 1} of {self.entry.num_samples}"

    @property
    def is_adopted(self) -> bool:
        return self.image.codec == "mixed"


@dataclass(frozen=True)
class ShardFindings:
    """What the check of a shard brought: faults, and the names that must not repeat over the whole set."""

    faults: list[Fault]
    keys: list[str]
    image_ids: list[str]  # with the source before them; empty for adopted shards, where an image may stand twice


def verify(
    url: str, console: Console | None = None, workers: int = 0, cache_dir: Path | None = None, deep: bool = False
) -> list[Fault]:
    """Read every file of the set and return all faults, sorted; prints them as a table.

    Args:
        deep: read every sample of a set that is sound so far through the webdataset library as well, and compare.
    """
    console = console or Console()
    manifest = None
    try:
        manifest = load_manifest(url)
    except ManifestError as error:
        faults = [Fault(MANIFEST_NAME, "", str(error))]
    else:
        in_shards = _check_shards(url, manifest, workers, cache_dir, console)
        faults = [*_check_folder(url, manifest), *in_shards, *_check_fingerprint(url, manifest, cache_dir)]
        columns = check_columns(url, manifest, cache_dir, lambda file, what: faults.append(Fault(file, "", what)))
        if deep and not faults:
            faults = [Fault(*difference) for difference in differences(url, cache_dir, console)]
        faults.sort()
        if not faults:
            also = ", and the webdataset library reads the same" if deep else ""
            console.print(
                f"[green]sound[/]: {escape(url)}: {counted(manifest.num_samples, 'sample')} and "
                f"{counted(manifest.num_captions, 'caption')} in {counted(len(manifest.shards), 'shard')}"
                f"{_spoken(columns)}, every byte as it was written{also}"
            )
    if faults:
        console.print(fault_table(url, faults))
    if manifest and any(fault.file in (shard.name, shard.index_name) for shard in manifest.shards for fault in faults):
        console.print(_shards_mended_by(url, manifest, faults), markup=False)
    for sentence in columns_mended_by(url, manifest, [fault.file for fault in faults]) if manifest else ():
        console.print(sentence, markup=False)
    if manifest and manifest.classes and not published_labels(manifest) and LABELS not in column_names(url):
        console.print(f"no labels, as in sets of before; `shardclip column labels {url}` makes them.", markup=False)
    return faults


def _shards_mended_by(url: str, manifest: Manifest, faults: Sequence[Fault]) -> str:
    """The sentence that says how the shards get back what they lost."""
    own = [fault for fault in faults if fault.file.endswith((".tar", ".idx"))]
    if manifest.image.codec == "mixed" and all(fault.what.startswith(_UNDECODABLE) for fault in own):
        return (  # every byte is as it was when the tars were adopted, so to index them again changes nothing
            "Restore the tars from a copy, or train with data.max_damaged (a count, or a share such as 0.001): such "
            "samples are then replaced and named."
        )
    return mended_by(url, manifest, of_right_size=any(fault.what != _IS_MISSING for fault in own))


def _spoken(columns: Sequence[ColumnHead]) -> str:
    return f" and {counted(len(columns), 'column')} ({', '.join(head.name for head in columns)})" if columns else ""


def fault_table(url: str, faults: Sequence[Fault]) -> Table:
    """The faults for people: the first `SHOWN_PER_FILE` of each file, and how many more it has."""
    table = Table("file", "sample", "fault", title=f"{url}: {counted(len(faults), 'fault')}", title_style="bold red")
    for file, of_file in groupby(faults, key=lambda fault: fault.file):
        own = list(of_file)
        for fault in own[:SHOWN_PER_FILE]:
            table.add_row(Text(file), Text(fault.sample), Text(fault.what))
        if len(own) > SHOWN_PER_FILE:
            table.add_row(Text(file), "", f"... and {len(own) - SHOWN_PER_FILE:,} more")
    return table


def check_shard(task: ShardCheck, report: Callable[[int], None]) -> ShardFindings:
    """Every fault of one shard, its index and its sidecar; runs in a worker."""
    entry = task.entry
    files = [(entry.name, entry.bytes, entry.sha256), (entry.index_name, None, entry.index_sha256)]
    if entry.embeddings:
        files.append((entry.embeddings.name, entry.embeddings.bytes, entry.embeddings.sha256))
    paths = {name: fetch(join(task.url, name), task.cache_dir, None) for name, _, _ in files}
    faults = [fault for name, size, sha256 in files for fault in _check_file(paths[name], name, size, sha256)]
    if not all(path.is_file() for path in paths.values()):
        return ShardFindings(faults, [], [])
    if any(fault.file == entry.index_name for fault in faults):
        return ShardFindings(faults, [], [])  # what a damaged index says of its shard would send people astray
    try:
        index = read_index(paths[entry.index_name])
    except DamagedError as error:
        return ShardFindings([*faults, Fault(entry.index_name, "", str(error))], [], [])
    try:
        in_tar = {offset: s for s in scan_tar(paths[entry.name]) for offset, _ in s.members.values()}
    except DamagedError as error:
        faults.append(Fault(entry.name, "", str(error)))
        in_tar = {}
    checker = _SampleChecker(task, index, in_tar, paths)
    for row in range(len(index)):
        checker.check(row)
        report(row + 1)
    return ShardFindings([*faults, *checker.faults, *checker.totals()], checker.keys, checker.image_ids)


class _SampleChecker:
    """Checks the samples of one shard, and collects."""

    def __init__(
        self, task: ShardCheck, index: ShardIndex, in_tar: dict[int, TarSample], paths: dict[str, Path]
    ) -> None:
        self.task, self.index, self.in_tar = task, index, in_tar
        self.faults: list[Fault] = []
        self.keys: list[str] = []
        self.image_ids: list[str] = []
        self.num_captions = 0
        self._maps = {name: mapped(path) for name, path in paths.items() if not name.endswith(".idx")}
        self._pixels = np.empty((task.image.size, task.image.size, 3), np.uint8)

    def check(self, row: int) -> None:
        """One sample: place, checksums, contents."""
        sample = self.in_tar.get(int(self.index.records[row, self.index.column(IMAGE)]["offset"]))
        key = sample.key if sample else f"row {row}"
        if sample:
            self.keys.append(key)
        elif self.in_tar:
            self._fault(key, "the index points to a place where no image begins")
        data: dict[str, memoryview] = {}
        damaged = []
        for column, member in enumerate(self.index.members):
            record = self.index.records[row, column]
            offset, length = int(record["offset"]), int(record["length"])
            data[member.name] = self._maps.get(member.file, memoryview(b""))[offset : offset + length]
            places = sample.members.values() if sample and member.file == self.task.entry.name else None
            if places and length and (offset, length) not in places:
                self._fault(key, f"the {member.name} lies elsewhere than the index says")
            if length and checksum(data[member.name]) != int(record["xxh3"]):
                damaged.append(f"{member.name}{' (cut off)' if len(data[member.name]) < length else ''}")
        if damaged:
            self._fault(key, f"not what was written, by its checksum: {', '.join(damaged)}")
        else:
            self._check_contents(row, key, data)

    def totals(self) -> Iterator[Fault]:
        """The counts of the whole shard against the manifest."""
        entry = self.task.entry
        if len(self.index) != entry.num_samples:
            yield Fault(entry.index_name, "", f"has {len(self.index)} samples, the manifest says {entry.num_samples}")
        if not self.faults and self.num_captions != entry.num_captions:
            yield Fault(entry.name, "", f"has {self.num_captions} captions, the manifest says {entry.num_captions}")
        indexed = {int(offset) for offset in self.index.records["offset"][:, self.index.column(IMAGE)]}
        unindexed = {s.key for s in self.in_tar.values() if not indexed & {o for o, _ in s.members.values()}}
        if unindexed and not self.task.is_adopted:
            yield Fault(entry.name, min(unindexed), f"{len(unindexed)} samples of the tar are not in the index")

    def _check_contents(self, row: int, key: str, data: dict[str, memoryview]) -> None:
        try:
            decode_into(data[IMAGE], self.task.image, self._pixels)
        except ImageError as error:
            self._fault(key, f"{_UNDECODABLE} ({error})")
        try:
            info = json.loads(bytes(data.get(JSON, b"")) or b"{}")
            text = bytes(data.get(TXT, b"")).decode()
            captions = info.get("captions") or [text or info["caption"]]
        except (ValueError, KeyError, AttributeError):
            self._fault(key, "no captions can be read from the json or txt")
            return
        self.num_captions += len(captions)
        if not self.task.is_adopted:
            self._check_identity(row, key, info, text)
        if self.task.embed_dim:
            self._check_embeddings(key, data.get(NPY, memoryview(b"")), len(captions))

    def _check_identity(self, row: int, key: str, info: dict[str, Any], text: str) -> None:
        if text != info.get("captions", [""])[0]:
            self._fault(key, "the txt is not the first caption of the json")
        source, image_id = str(info.get("source")), str(info.get("image_id"))
        self.image_ids.append(f"{source} {image_id}")
        if image_id_of(source, image_id) != int(self.index.image_ids[row]):
            self._fault(key, "the index puts it into another image's group than its image_id says")

    def _check_embeddings(self, key: str, data: memoryview, num_captions: int) -> None:
        try:
            embeddings = decode_embeddings(data).astype(np.float32)
        except (DamagedError, ValueError, IndexError):
            self._fault(key, "the caption embeddings cannot be read")
            return
        if embeddings.shape != (num_captions, self.task.embed_dim):
            self._fault(key, f"embeddings of shape {embeddings.shape}, {(num_captions, self.task.embed_dim)} is right")
        elif not np.isfinite(embeddings).all():
            self._fault(key, "an embedding is not finite")
        elif np.abs(np.linalg.norm(embeddings, axis=1) - 1).max() > UNIT_TOLERANCE:
            self._fault(key, "an embedding is not of unit length")

    def _fault(self, key: str, what: str) -> None:
        self.faults.append(Fault(self.task.entry.name, key, what))


def _check_file(path: Path, name: str, size: int | None, sha256: str) -> Iterator[Fault]:
    if not path.is_file():
        yield Fault(name, "", _IS_MISSING)
    elif size is not None and path.stat().st_size != size:
        yield Fault(name, "", f"has {path.stat().st_size} bytes, the manifest says {size}")
    elif sha256_of(path) != sha256:
        yield Fault(name, "", "its sha256 is not the one in the manifest")


def _check_shards(
    url: str, manifest: Manifest, workers: int, cache_dir: Path | None, console: Console
) -> Iterator[Fault]:
    embed_dim = manifest.text_encoder.embed_dim if manifest.text_encoder else 0
    tasks = [ShardCheck(url, entry, manifest.image, embed_dim, cache_dir) for entry in manifest.shards]
    places: dict[str, list[str]] = defaultdict(list)  # key or image id -> shards that have it
    with (
        # Plain Pillow, as in training: pillow-simd may have been compiled without WebP.
        ProcessesEngine(workers or available_cores(), pillow_simd=False) as engine,
        progress_bar(console, "samples", total=manifest.num_samples) as show,
    ):
        for task, findings in engine.run(check_shard, tasks, show):
            yield from findings.faults
            scope = f"{task.name} key" if task.is_adopted else "key"  # others number each shard from 0
            for name in [f"{scope} {key}" for key in findings.keys] + [f"image id {i}" for i in findings.image_ids]:
                places[name].append(task.name)
    for name, shards in places.items():
        if len(shards) > 1:
            yield Fault(min(shards), "", f"{name} stands {len(shards)} times (in {', '.join(sorted(set(shards)))})")


def _check_fingerprint(url: str, manifest: Manifest, cache_dir: Path | None) -> Iterator[Fault]:
    paths = [fetch(join(url, entry.index_name), cache_dir, None) for entry in manifest.shards]
    if any(not path.is_file() or sha256_of(path) != entry.index_sha256 for path, entry in zip(paths, manifest.shards)):
        return  # that fault is found with its shard
    try:
        found = samples_fingerprint(read_index(path) for path in paths)
    except DamagedError:
        return  # so is this one
    if manifest.fingerprint not in ("", found):  # "": of before manifests had one
        yield Fault(MANIFEST_NAME, "", "its fingerprint is not that of the samples that the indexes name")


def _check_folder(url: str, manifest: Manifest) -> Iterator[Fault]:
    named = {MANIFEST_NAME, REJECTED_NAME, CONTACT_SHEET_NAME, BUILD_NAME}
    named |= {CUT_NAME} if manifest.num_cut_captions else set()
    for entry in manifest.shards:
        named |= {entry.name, entry.index_name} | ({entry.embeddings.name} if entry.embeddings else set())
    adopted = manifest.image.codec == "mixed"
    strangers = _strangers_of_adopted(url, manifest) if adopted else set(list_names(url))
    remedy = AGAIN if adopted else ""
    for name in strangers - named:
        yield Fault(name, "", f"is not named by the manifest: left over, or put there by hand{remedy}")
    if exists(join(url, STATE_NAME)):
        yield Fault(STATE_NAME, "", "left over from an unfinished build: run the build again, it only tidies up")
    for fault in (*_check_rejected(url, manifest), *_check_build(url, manifest)):
        yield replace(fault, what=fault.what + remedy)


def _strangers_of_adopted(url: str, manifest: Manifest) -> set[str]:
    """Tars that are not indexed, and what `index-shards` would remove; other files beside others' tars are theirs."""
    try:
        unusable = {skip.detail for skip in read_rejected(url)}  # tars without a usable sample among them
    except _UNREADABLE:
        unusable = set()
    names = [n for n in list_names(url) if n.endswith(".tar") or n.startswith(PARTIAL_PREFIX)]
    return {*names, *left_overs(url, manifest)} - unusable


def _check_rejected(url: str, manifest: Manifest) -> Iterator[Fault]:
    try:
        counts = count_by_reason(read_rejected(url))
    except _UNREADABLE:
        yield Fault(REJECTED_NAME, "", "is missing or cannot be read")
        return
    if counts != manifest.skipped:
        yield Fault(
            REJECTED_NAME, "", f"lists {counts or 'nothing'}, the manifest says {manifest.skipped or 'nothing'}"
        )


def _check_build(url: str, manifest: Manifest) -> Iterator[Fault]:
    try:
        build = load_build(url)
    except (ManifestError, StorageError) as error:
        yield Fault(BUILD_NAME, "", str(error))
        return
    if fingerprint_of(build["recipe"]) != manifest.build_fingerprint:
        yield Fault(BUILD_NAME, "", "is not the recipe whose fingerprint the manifest has")
    for name, sha256 in build["files"].items():
        if not exists(join(url, name)):
            yield Fault(name, "", "is missing")
        elif sha256_of(join(url, name)) != sha256:
            yield Fault(name, "", f"its sha256 is not the one in {BUILD_NAME}")
