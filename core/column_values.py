"""A column's values by sample number, over one or several sets; every file is checked when it is first read."""

from __future__ import annotations

import io
import resource
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import xxhash

from core.columns import (
    FOLDER,
    HEAD_NAME,
    LABELS,
    NO_NUMBER,
    TOPICS,
    ColumnFile,
    ColumnHead,
    column_url,
    counts_file,
    extra_file,
    load_head,
    values_file,
)
from core.errors import DamagedError, ManifestError
from core.manifest import Manifest
from core.storage import join

CENTROIDS = "centroids"  # the extra array of topics: `(num_topics, E)` float32, unit length or shorter
ReadFile = Callable[[int, ColumnFile, str], memoryview]  # number of the set, the head's entry, name in the set


class Column:
    """A column over all sets of a shard set.

    Args:
        urls, heads, manifests: of each set, in order.
    """

    def __init__(
        self, urls: Sequence[str], heads: Sequence[ColumnHead], manifests: Sequence[Manifest], read: ReadFile
    ) -> None:
        self.heads, self._urls, self._read = tuple(heads), tuple(urls), read
        self.head = heads[0]
        self._files = [{entry.name: entry for entry in head.files} for head in heads]
        self._shards = [(number, s) for number, manifest in enumerate(manifests) for s in manifest.shards]
        self._ends = np.cumsum([s.num_samples for _, s in self._shards])
        self._numbers = _united_numbers(heads)
        self.classes = united_classes([head.classes for head in heads])
        self._parts: OrderedDict[int, tuple[np.ndarray, np.ndarray | None]] = OrderedDict()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def rows(self, samples: np.ndarray) -> np.ndarray:
        """`(B, ...)`: the value of each sample, of a column per sample.

        Raises:
            DamagedError: a file is not what was written; names it.
        """
        assert self.head.per == "sample", self.head.name
        out = np.empty((len(samples), *self.head.shape), self.head.dtype)
        for shard, places, rows in self._by_shard(samples):
            out[places] = self._part(shard)[0][rows]
        return out

    def all_rows(self) -> np.ndarray:
        """`(num_samples, ...)`: the values of every sample in order."""
        assert self.head.per == "sample", self.head.name
        out = np.empty((len(self), *self.head.shape), self.head.dtype)
        for shard, (_, entry) in enumerate(self._shards):  # one file open at a time
            out[self._ends[shard] - entry.num_samples : self._ends[shard]] = self._read_part(shard)[0]
        return out

    def of_captions(self, sample: int) -> np.ndarray:
        """`(C, ...)`: the value of each caption of a sample, of a column per caption."""
        shard = int(np.searchsorted(self._ends, sample, side="right"))
        row = int(sample - self._ends[shard] + self._shards[shard][1].num_samples)
        values, starts = self._part(shard)
        assert starts is not None, self.head.name
        return values[starts[row] : starts[row + 1]]

    @property
    def most_captions(self) -> int:
        """The most captions that a sample has, of a column per caption; reads every file's counts."""
        starts = (self._read_part(shard)[1] for shard in range(len(self._shards)))
        return max(int(np.diff(own).max(initial=0)) for own in starts if own is not None)

    def extra(self, name: str) -> np.ndarray:
        """A further array of the first set's column, as the centroids of topics."""
        return self._array(0, extra_file(name))

    def _by_shard(self, samples: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        shards = np.searchsorted(self._ends, samples, side="right")
        for shard in np.unique(shards):
            places = np.flatnonzero(shards == shard)
            yield int(shard), places, samples[places] - self._ends[shard] + self._shards[shard][1].num_samples

    def _part(self, shard: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Values of a shard, and where those of each sample begin; those used last stay open."""
        if shard in self._parts:
            self._parts.move_to_end(shard)
        else:
            self._parts[shard] = self._read_part(shard)
            if len(self._parts) > resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4:
                self._parts.popitem(last=False)
        return self._parts[shard]

    def _read_part(self, shard: int) -> tuple[np.ndarray, np.ndarray | None]:
        number, entry = self._shards[shard]
        name = values_file(entry.name)
        values, starts = self._array(number, name), None
        if self.head.per == "caption":
            counts = self._array(number, counts_file(entry.name))
            starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        expected = (entry.num_samples if starts is None else int(starts[-1]), *self.head.shape)
        if values.shape != expected or values.dtype != self.head.dtype:
            raise self._damaged(number, name, f"{values.dtype} {values.shape}, {self.head.dtype} {expected} is right")
        if starts is not None and len(starts) != entry.num_samples + 1:
            raise self._damaged(number, counts_file(entry.name), f"not of {entry.num_samples} samples")
        numbers = self._numbers[number]
        return (values if numbers is None else numbers[values]), starts

    def _array(self, number: int, name: str) -> np.ndarray:
        entry = self._files[number].get(name)
        if entry is None:
            raise self._damaged(number, name, f"not named by its {HEAD_NAME}")
        data = self._read(number, entry, join(FOLDER, self.heads[number].name, name))
        if len(data) != entry.bytes or xxhash.xxh3_64_hexdigest(data) != entry.xxh3:
            raise self._damaged(number, name, "its hash does not fit")
        return decode_array(data)

    def _damaged(self, number: int, name: str, what: str) -> DamagedError:
        path = join(column_url(self._urls[number], self.heads[number].name), name)
        return DamagedError(f"{path}: damaged ({what}). Delete the column and make it again.")


def open_heads(urls: Sequence[str], fingerprints: Sequence[str], name: str) -> list[ColumnHead]:
    """The column's head in each of several sets.

    Raises:
        ManifestError: a set lacks it, it speaks of other samples, or the sets' columns do not fit together.
    """
    heads = [load_head(url, name) for url in urls]
    for url, head, fingerprint in zip(urls, heads, fingerprints, strict=True):
        if head.fingerprint != fingerprint:
            raise ManifestError(
                f"{url}: column '{name}' was made for other samples than the set has now. Delete {join(FOLDER, name)} "
                "there and make it again."
            )
        for what in ("kind", "per", "dtype", "shape"):
            ours, first = getattr(head, what), getattr(heads[0], what)
            if ours != first:
                raise ManifestError(
                    f"{url}: column '{name}' has {what} {ours}, that of {urls[0]} {first}. Make both alike."
                )
        if _maker(head) != _maker(heads[0]):
            raise ManifestError(
                f"{url}: column '{name}' was made by {_maker(head)}, that of {urls[0]} by {_maker(heads[0])}. "
                "Make both alike."
            )
    return heads


def united_classes(classes: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Classes of several sets as one list: those of the first, then what each further set adds; one name, one class."""
    return tuple(dict.fromkeys(name for own in classes for name in own))


def decode_array(data: memoryview) -> np.ndarray:
    """The array in the bytes of a `.npy`; a view, nothing is copied."""
    buffer = io.BytesIO(bytes(data[:4096]))  # the header is far shorter
    version = np.lib.format.read_magic(buffer)
    assert version == (1, 0), version
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(buffer)
    assert not is_fortran
    count = int(np.prod(shape))
    return np.frombuffer(data, dtype, count, buffer.tell()).reshape(shape)


def _maker(head: ColumnHead) -> Any:
    """What must be the same in sets that are read as one: the encoder, tokenizer or tower; not files or seeds."""
    return head.origin.get("text_encoder") or head.origin.get("tokenizer") or head.origin.get("tower")


def _united_numbers(heads: Sequence[ColumnHead]) -> list[np.ndarray | None]:
    """For each set, its numbers -> those of all sets; None where they stay. -1 stays -1 (the tables' last entry).

    Labels of one name are one class. Topics around the same centroids are the same topics; others are numbered on.
    """
    if len(heads) == 1 or heads[0].kind not in (LABELS, TOPICS):
        return [None] * len(heads)
    if heads[0].kind == LABELS:
        place = {name: number for number, name in enumerate(united_classes([head.classes for head in heads]))}
        return [np.array([*(place[name] for name in head.classes), NO_NUMBER], head.dtype) for head in heads]
    starts, first, end = dict[str, int](), [], 0
    for number, head in enumerate(heads):
        sharing = centroids_sha256(head) or f"set {number}"
        if sharing not in starts:
            starts[sharing], end = end, end + int(head.origin["num_topics"])
        first.append(starts[sharing])
    return [
        np.array([*range(start, start + int(head.origin["num_topics"])), NO_NUMBER], head.dtype)
        for start, head in zip(first, heads)
    ]


def centroids_sha256(head: ColumnHead) -> str:
    """Which centroids a column of topics goes by; "" where it keeps none."""
    return next((entry.sha256 for entry in head.files if entry.name == extra_file(CENTROIDS)), "")
