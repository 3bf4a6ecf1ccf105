"""Columns: what is known of a sealed set's samples later. A folder beside the shards, whole, bound to the set.

    SET/columns/text.clip-vit-b32/
      column.json             written last; what the column is, and size and hashes of every file, itself included
      train-00000.npy ...     one array per shard, in the shard's order
      train-00000.counts.npy  of columns with a value per caption: how many captions each sample has

A set's fingerprint says which samples a column speaks of, so a column of other samples is refused. Free of torch.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xxhash

from core.errors import DamagedError, ManifestError, did_you_mean
from core.fields import fill
from core.manifest import Manifest, TextEncoderSpec
from core.storage import (
    PARTIAL_PREFIX,
    exists,
    is_local,
    join,
    list_folders,
    local,
    publish_bytes,
    publish_folder,
    read_bytes,
)

FOLDER, HEAD_NAME = "columns", "column.json"
FORMAT_VERSION = 1
NO_NUMBER = -1  # of a sample without label or topic
Per = Literal["sample", "caption"]


@dataclass(frozen=True)
class ColumnFile:
    """One file of a column."""

    name: str
    bytes: int
    sha256: str
    xxh3: str  # what readers check: twenty times as fast


@dataclass(frozen=True)
class ColumnHead:
    """What a column is: the content of `column.json`.

    Attributes:
        name: the folder's: `labels`, `text.clip-vit-b32`.
        kind: labels | topics | tokens | text | features: what it can be used for.
        per: whether a sample has one value, or one for each of its captions.
        dtype: of numpy, little-endian.
        shape: of one value.
        origin: what it was made by, in words that can be compared: encoder, tower, file, seed, ...
        fingerprint: of the set's samples.
        classes: names of the numbers, of labels.
        files: one per shard, two where `per` is "caption"; then others, as centroids.
    """

    name: str
    kind: str
    per: Per
    dtype: str
    shape: tuple[int, ...]
    origin: dict[str, Any]
    fingerprint: str
    classes: tuple[str, ...] = ()
    files: tuple[ColumnFile, ...] = ()
    format_version: int = field(default=FORMAT_VERSION)

    @property
    def text_encoder(self) -> TextEncoderSpec:
        """Which encoder made a text column."""
        where, remedy = f"column '{self.name}'", "Update shardclip, or delete the column and make it again."
        return fill(TextEncoderSpec, self.origin.get("text_encoder"), where, ManifestError, remedy)


@dataclass(frozen=True)
class ShardValues:
    """One shard's part of a column: `(n, ...)`; with `counts` `(n,)` those of all captions, one after the other."""

    values: np.ndarray
    counts: np.ndarray | None = None


def publish_column(
    url: str, head: ColumnHead, shards: Sequence[str], parts: Iterable[ShardValues], extras: Mapping[str, np.ndarray]
) -> ColumnHead:
    """Publish a column whole; `parts` come shard by shard, as they are made.

    Args:
        head: without its files.
        shards: names of the set's tars, in order.
        extras: further arrays to keep in the folder, by name.

    Raises:
        StorageError: a column of that name is there already, or the disk is full; nothing is left.
    """
    where = column_url(url, head.name)
    if not is_local(url):

        def upload(name: str, data: bytes) -> None:
            publish_bytes(data, join(where, name))

        return _fill(head, shards, parts, extras, upload)
    done: list[ColumnHead] = []

    def fill(folder: Path) -> None:
        def write(name: str, data: bytes) -> None:
            (folder / name).write_bytes(data)

        done.append(_fill(head, shards, parts, extras, write))

    publish_folder(fill, local(where))
    return done[0]


def load_head(url: str, name: str) -> ColumnHead:
    """What a set's column says of itself, verified against its own hash.

    Raises:
        ManifestError: there is no such column, or it is altered or of a newer format.
    """
    path = join(column_url(url, name), HEAD_NAME)
    if not exists(path):
        known = column_names(url)
        hint = did_you_mean(name, known) or " It has none: make one with `shardclip column`."
        raise ManifestError(f"{url}: has no column '{name}'.{hint}")
    data = read_bytes(path)
    try:
        body = json.loads(data)
        is_intact = data == _signed({key: value for key, value in body.items() if key != "column_sha256"})
    except (ValueError, AttributeError):
        is_intact = False
    if not is_intact:
        raise ManifestError(f"{path}: its own hash does not fit: it was altered. Delete the column and make it again.")
    if body.get("format_version", 0) > FORMAT_VERSION:
        raise ManifestError(
            f"{path}: format {body['format_version']} is newer than {FORMAT_VERSION}. Update shardclip."
        )
    return _head_of(body, path)


def column_names(url: str) -> list[str]:
    """Names of a set's finished columns, sorted."""
    folder = join(url, FOLDER)
    names = list_folders(folder) if exists(folder) else []
    return [n for n in names if not n.startswith(PARTIAL_PREFIX) and exists(join(folder, n, HEAD_NAME))]


def column_url(url: str, name: str) -> str:
    """The column's folder."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ManifestError(f"column '{name}': a name has letters, digits, '.', '_' and '-' only.")
    return join(url, FOLDER, name)


def values_file(shard: str) -> str:
    """The file that holds a shard's values."""
    return shard.removesuffix(".tar") + ".npy"


def counts_file(shard: str) -> str:
    """The file that says how many captions each sample of a shard has."""
    return shard.removesuffix(".tar") + ".counts.npy"


class Column:
    """A column over all sets of a shard set: values by sample number. Files are checked when they are first read.

    Args:
        heads, manifests: of each set, in order.
        read: gives the bytes of a file of a set: `(number of the set, name, head's entry) -> bytes`.
    """

    def __init__(
        self,
        heads: Sequence[ColumnHead],
        manifests: Sequence[Manifest],
        read: Callable[[int, ColumnFile, str], memoryview],
    ) -> None:
        self.heads, self._read = tuple(heads), read
        self.head = heads[0]
        self._files = [{entry.name: entry for entry in head.files} for head in heads]
        self._shards = [(number, s) for number, manifest in enumerate(manifests) for s in manifest.shards]
        self._ends = np.cumsum([s.num_samples for _, s in self._shards])
        self._numbers = _united_numbers(heads)
        self.classes = united_classes([head.classes for head in heads])
        self._parts: dict[int, tuple[np.ndarray, np.ndarray | None]] = {}

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
        return np.concatenate([self._part(shard)[0] for shard in range(len(self._shards))])

    def of_captions(self, sample: int) -> np.ndarray:
        """`(C, ...)`: the value of each caption of a sample, of a column per caption."""
        shard = int(np.searchsorted(self._ends, sample, side="right"))
        row = int(sample - self._ends[shard] + self._shards[shard][1].num_samples)
        values, starts = self._part(shard)
        assert starts is not None, self.head.name
        return values[starts[row] : starts[row + 1]]

    def _by_shard(self, samples: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        shards = np.searchsorted(self._ends, samples, side="right")
        for shard in np.unique(shards):
            places = np.flatnonzero(shards == shard)
            yield int(shard), places, samples[places] - self._ends[shard] + self._shards[shard][1].num_samples

    def _part(self, shard: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Values of a shard, and where those of each sample begin."""
        if shard not in self._parts:
            number, entry = self._shards[shard]
            values, starts = self._array(number, values_file(entry.name)), None
            if self.head.per == "caption":
                counts = self._array(number, counts_file(entry.name))
                starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
            expected = (entry.num_samples if starts is None else int(starts[-1]), *self.head.shape)
            if values.shape != expected or (starts is not None and len(starts) != entry.num_samples + 1):
                raise self._damaged(number, values_file(entry.name), f"shape {values.shape}, {expected} is right")
            numbers = self._numbers[number]
            self._parts[shard] = (values if numbers is None else numbers[values], starts)
        return self._parts[shard]

    def _array(self, number: int, name: str) -> np.ndarray:
        entry = self._files[number].get(name)
        if entry is None:
            raise self._damaged(number, name, f"not named by its {HEAD_NAME}")
        data = self._read(number, entry, join(FOLDER, self.heads[number].name, name))
        if len(data) != entry.bytes or xxhash.xxh3_64_hexdigest(data) != entry.xxh3:
            raise self._damaged(number, name, "its hash does not fit")
        return decode_array(data)

    def _damaged(self, number: int, name: str, what: str) -> DamagedError:
        column = self.heads[number].name
        return DamagedError(f"{column_url('', column)}/{name}: damaged ({what}). Delete the column and make it again.")


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


def encode_array(array: np.ndarray) -> bytes:
    """`.npy` bytes of version 1.0; equal arrays give equal bytes."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0))
    return buffer.getvalue()


def decode_array(data: memoryview) -> np.ndarray:
    """The array in the bytes of a `.npy`; a view, nothing is copied."""
    buffer = io.BytesIO(bytes(data[:4096]))  # the header is far shorter
    version = np.lib.format.read_magic(buffer)
    assert version == (1, 0), version
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(buffer)
    assert not is_fortran
    count = int(np.prod(shape))
    return np.frombuffer(data, dtype, count, buffer.tell()).reshape(shape)


def head_bytes(head: ColumnHead) -> bytes:
    """The bytes of `column.json`, with a hash of itself."""
    return _signed(json.loads(json.dumps(asdict(head))))


def _fill(
    head: ColumnHead,
    shards: Sequence[str],
    parts: Iterable[ShardValues],
    extras: Mapping[str, np.ndarray],
    write: Callable[[str, bytes], None],
) -> ColumnHead:
    """Write every file of the column, `column.json` last."""
    files: list[ColumnFile] = []

    def add(name: str, array: np.ndarray) -> None:
        data = encode_array(array)
        files.append(ColumnFile(name, len(data), hashlib.sha256(data).hexdigest(), xxhash.xxh3_64_hexdigest(data)))
        write(name, data)

    for shard, part in zip(shards, parts, strict=True):
        assert part.values.dtype == head.dtype and part.values.shape[1:] == head.shape, f"{head.name}: {shard}"
        assert (part.counts is not None) == (head.per == "caption"), f"{head.name}: {shard}"
        add(values_file(shard), part.values)
        if part.counts is not None:
            assert part.counts.sum() == len(part.values), f"{head.name}: {shard}"
            add(counts_file(shard), part.counts.astype("<i4"))
    for name, array in extras.items():
        add(f"{name}.npy", array)
    whole = ColumnHead(**{**_shallow(head), "files": tuple(files)})
    write(HEAD_NAME, head_bytes(whole))
    return whole


def _shallow(head: ColumnHead) -> dict[str, Any]:
    return {f.name: getattr(head, f.name) for f in fields(head)}


def _head_of(body: dict[str, Any], path: str) -> ColumnHead:
    remedy = "Update shardclip, or delete the column and make it again."
    files = tuple(fill(ColumnFile, entry, path, ManifestError, remedy) for entry in body.get("files", ()))
    lists = {name: tuple(body[name]) for name in ("shape", "classes") if name in body}
    return fill(ColumnHead, {**body, **lists, "files": files}, path, ManifestError, remedy)


def _signed(body: dict[str, Any]) -> bytes:
    digest = hashlib.sha256(json.dumps(body, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
    return (json.dumps({**body, "column_sha256": digest}, indent=1, ensure_ascii=False) + "\n").encode()


def _maker(head: ColumnHead) -> Any:
    """What must be the same in sets that are read as one: the encoder, tokenizer or tower; not files or seeds."""
    return head.origin.get("text_encoder") or head.origin.get("tokenizer") or head.origin.get("tower")


def _united_numbers(heads: Sequence[ColumnHead]) -> list[np.ndarray | None]:
    """For each set, its numbers -> those of all sets; None where they stay. -1 stays -1 (the tables' last entry).

    Labels of one name are one class. Topics of two sets have nothing to do with each other: they are numbered on.
    """
    if len(heads) == 1 or heads[0].kind not in ("labels", "topics"):
        return [None] * len(heads)
    if heads[0].kind == "labels":
        place = {name: number for number, name in enumerate(united_classes([head.classes for head in heads]))}
        return [np.array([*(place[name] for name in head.classes), NO_NUMBER], head.dtype) for head in heads]
    counts = [int(head.origin["num_topics"]) for head in heads]
    starts = np.cumsum([0, *counts])
    return [np.array([*range(a, a + n), NO_NUMBER], head.dtype) for a, n, head in zip(starts, counts, heads)]
