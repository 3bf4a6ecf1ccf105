"""Check a set's columns: every file against the head, and every value against what its kind promises."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from core.column_values import CENTROIDS, decode_array
from core.columns import (
    FOLDER,
    HEAD_NAME,
    LABELS,
    NO_NUMBER,
    TEXT,
    TOKENS,
    TOPICS,
    ColumnFile,
    ColumnHead,
    column_names,
    column_url,
    counts_file,
    extra_file,
    load_head,
    values_file,
)
from core.errors import ShardclipError
from core.manifest import Manifest, ShardEntry
from core.mapped import mapped
from core.shard_set import ShardSet
from core.storage import exists, fetch, join, list_folders, list_names, sha256_of
from shard_builder.columns.labels import FROM_JSON

UNIT_TOLERANCE = 2e-3  # rounding to float16 moves the length by 5e-4 at most
Report = Callable[[str, str], None]  # (file in the set, what is wrong with it)


def check_columns(url: str, manifest: Manifest, cache_dir: Path | None, report: Report) -> list[ColumnHead]:
    """Report every fault of every column; returns the heads that can be read."""
    folder = join(url, FOLDER)
    if published_labels(manifest) and not exists(column_url(url, LABELS)):
        report(join(FOLDER, LABELS, HEAD_NAME), "is missing: the build published labels, since the set has classes")
    if not exists(folder):
        return []
    for name in list_names(folder):
        report(join(FOLDER, name), "is no column: left over from a killed `shardclip column`, or put there by hand")
    checked = _CheckedSet(url, manifest, cache_dir)
    heads = []
    for name in list_folders(folder):
        if not exists(join(folder, name, HEAD_NAME)) or name.startswith("."):
            left = "is no whole column: left over from a killed `shardclip column`, which tidies up when run again"
            report(join(FOLDER, name, HEAD_NAME), left)
            continue
        try:
            head = load_head(url, name)
        except ShardclipError as error:
            report(join(FOLDER, name, HEAD_NAME), str(error))
        else:
            heads.append(head)
            _ColumnChecker(checked, head, report).check()
    return heads


def published_labels(manifest: Manifest) -> bool:
    """Whether the build of this set has published a column of labels; those that did not said nothing of captions."""
    return bool(manifest.classes and manifest.captions)


def columns_mended_by(url: str, manifest: Manifest, files: Sequence[str]) -> list[str]:
    """For each column that has a fault in one of its `files`, the sentence that says how it is made again."""
    sentences = []
    for name in sorted(
        {file.split("/")[1] for file in files if file.count("/") == 2 and file.startswith(f"{FOLDER}/")}
    ):
        command = f"`shardclip column {{kind}} {url}`"
        if name == LABELS and published_labels(manifest) and _is_of_the_build(url):
            again = f"`shardclip build` with the recipe of this set (out={url}), or {command.format(kind=LABELS)}"
            sentences.append(f"{again}, makes the labels again.")
        elif name in column_names(url):
            again = f"{command.format(kind=_kind_of(url, name))}, with the options that it was made with"
            sentences.append(f"{again}, makes column {name} again.")
    return sentences


def _kind_of(url: str, name: str) -> str:
    try:
        return load_head(url, name).kind
    except ShardclipError:
        return "KIND"


def _is_of_the_build(url: str) -> bool:
    """Whether the labels that are there, or were, are the build's; those of a file, under the same name, are not."""
    if LABELS not in column_names(url):
        return True
    try:
        return dict(load_head(url, LABELS).origin) == FROM_JSON
    except ShardclipError:
        return False


@dataclass
class _CheckedSet:
    """The set that the columns must speak of."""

    url: str
    manifest: Manifest
    cache_dir: Path | None

    @cached_property
    def shard_set(self) -> ShardSet:
        return ShardSet((self.url,), (self.manifest,), self.cache_dir, verified=False)  # indexes are checked

    @cached_property
    def fingerprint(self) -> str:
        """ "" where it cannot be known: indexes that are damaged are faults of their own."""
        try:
            return self.shard_set.fingerprints[0]
        except ShardclipError:
            return ""

    @cached_property
    def caption_counts(self) -> list[np.ndarray]:
        """For each shard the captions of each sample; -1 where they cannot be read (a fault of its own)."""
        return [
            np.array([self._count(sample) for sample in self._samples(n)]) for n in range(len(self.manifest.shards))
        ]

    def _samples(self, shard: int) -> range:
        sizes = self.shard_set.shard_sizes
        first = int(sizes[:shard].sum())
        return range(first, first + int(sizes[shard]))

    def _count(self, sample: int) -> int:
        try:
            return len(self.shard_set.captions(sample))
        except (ShardclipError, OSError, ValueError, KeyError, IndexError):
            return -1


class _ColumnChecker:
    """Checks one column."""

    def __init__(self, checked: _CheckedSet, head: ColumnHead, report: Report) -> None:
        self.checked, self.head, self._report = checked, head, report
        self.files: Mapping[str, ColumnFile] = {entry.name: entry for entry in head.files}

    def check(self) -> None:
        """Everything."""
        head, checked = self.head, self.checked
        if checked.fingerprint and head.fingerprint != checked.fingerprint:
            self._fault(HEAD_NAME, "was made for other samples than the set has now: delete it and make it again")
            return
        for name in list_names(join(checked.url, FOLDER, self.head.name)):
            if name != HEAD_NAME and name not in self.files:
                self._fault(name, f"is not named by {HEAD_NAME}: left over, or put there by hand")
        sound = {entry.name for entry in head.files if self._is_sound(entry)}
        for number, shard in enumerate(checked.manifest.shards):
            wanted = [values_file(shard.name), *([counts_file(shard.name)] if head.per == "caption" else [])]
            for name in wanted:
                if name not in self.files:
                    self._fault(HEAD_NAME, f"does not name {name}")
            if sound.issuperset(wanted):
                self._check_shard(number, shard)
        if head.kind == TOPICS and extra_file(CENTROIDS) in sound:
            self._check_centroids()

    def _check_shard(self, number: int, shard: ShardEntry) -> None:
        head, name = self.head, values_file(shard.name)
        values, rows = self._array(name), shard.num_samples
        if head.per == "caption":
            counts = self._array(counts_file(shard.name))
            own = self.checked.caption_counts[number]
            if len(counts) != len(own) or (counts != own)[own >= 0].any():
                self._fault(counts_file(shard.name), "its counts are not those of the samples' captions")
                return
            rows = int(counts.sum())
        if values.shape != (rows, *head.shape) or values.dtype != head.dtype:
            self._fault(name, f"{values.dtype} {values.shape}, {head.dtype} {(rows, *head.shape)} is right")
        elif what := fault_of_values(head, values):
            self._fault(name, what)

    def _check_centroids(self) -> None:
        centroids = self._array(extra_file(CENTROIDS))
        if len(centroids) != self.head.origin["num_topics"] or not np.isfinite(centroids).all():
            self._fault(extra_file(CENTROIDS), f"is not {self.head.origin['num_topics']} finite centroids")

    def _is_sound(self, entry: ColumnFile) -> bool:
        if not exists(join(self.checked.url, FOLDER, self.head.name, entry.name)):
            self._fault(entry.name, "is missing")
            return False
        path = self._path(entry.name)
        if path.stat().st_size != entry.bytes:
            self._fault(entry.name, f"has {path.stat().st_size} bytes, {HEAD_NAME} says {entry.bytes}")
        elif sha256_of(path) != entry.sha256:
            self._fault(entry.name, f"its sha256 is not the one in {HEAD_NAME}")
        else:
            return True
        return False

    def _array(self, name: str) -> np.ndarray:
        return decode_array(mapped(self._path(name)))

    def _path(self, name: str) -> Path:
        return fetch(join(self.checked.url, FOLDER, self.head.name, name), self.checked.cache_dir, None)

    def _fault(self, name: str, what: str) -> None:
        self._report(join(FOLDER, self.head.name, name), what)


def fault_of_values(head: ColumnHead, values: np.ndarray) -> str:
    """What is wrong with a shard's values by the promises of their kind; "" where nothing is."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        return "a value is not finite"
    if head.kind == TEXT:
        lengths = np.linalg.norm(values.astype(np.float32), axis=1)
        return "an embedding is not of unit length" if (np.abs(lengths - 1) > UNIT_TOLERANCE).any() else ""
    if head.kind in (LABELS, TOPICS):
        count = len(head.classes) if head.kind == LABELS else int(head.origin["num_topics"])
        return _out_of_range(values, count)
    if head.kind == TOKENS:
        ends = values == NO_NUMBER
        if (ends[:, :-1] > ends[:, 1:]).any() or ends[:, 0].any():
            return "a caption has no tokens, or goes on after its end"
        return _out_of_range(values, int(head.origin["tokenizer"]["vocabulary_size"]))
    return ""


def _out_of_range(values: np.ndarray, count: int) -> str:
    outside = (values < NO_NUMBER) | (values >= count)
    return f"holds {values[outside].flat[0]}: -1 to {count - 1} is possible" if outside.any() else ""
