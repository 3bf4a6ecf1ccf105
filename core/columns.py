"""Columns: what is known of a sealed set's samples later. A folder beside the shards, whole, bound to the set.

    SET/columns/text.clip-vit-base-patch32/
      column.json             written last; what the column is, and size and hashes of every file, itself included
      train-00000.npy ...     one array per shard, in the shard's order
      train-00000.counts.npy  of columns with a value per caption: how many captions each sample has

A set's fingerprint says which samples a column speaks of, so a column of other samples is refused. Here they are
written and their heads read; `core.column_values` reads values, `core.column_kind` is what a kind gives.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xxhash

from core.errors import ManifestError, StorageError, did_you_mean
from core.fields import fill
from core.manifest import TextEncoderSpec
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
    remove,
)

FOLDER, HEAD_NAME = "columns", "column.json"
FORMAT_VERSION = 1
NO_NUMBER = -1  # of a sample without label or topic, and past the end of a caption's tokens
LABELS, TOPICS, TOKENS, TEXT, FEATURES = "labels", "topics", "tokens", "text", "features"  # the kinds
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
        name: the folder's: `labels`, `text.clip-vit-base-patch32`.
        kind: labels | topics | tokens | text | features: what it can be used for.
        per: whether a sample has one value, or one for each of its captions.
        dtype: of numpy, little-endian.
        shape: of one value.
        origin: what it was made by, in words that can be compared: encoder, tower, file, seed, ...
        fingerprint: of the set's samples.
        classes: names of the numbers, of labels.
        figures: what came out, for people: counts, sizes of topics, ...; never compared.
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
    figures: dict[str, Any] = field(default_factory=dict)
    files: tuple[ColumnFile, ...] = ()
    format_version: int = field(default=FORMAT_VERSION)

    @property
    def text_encoder(self) -> TextEncoderSpec:
        """Which encoder made a text column."""
        where, remedy = f"column '{self.name}'", "Update shardclip, or delete the column and make it again."
        return fill(TextEncoderSpec, self.origin.get("text_encoder"), where, ManifestError, remedy)

    @property
    def bytes(self) -> int:
        """Size of all files but the head."""
        return sum(entry.bytes for entry in self.files)


@dataclass(frozen=True)
class ShardValues:
    """One shard's part of a column: `(n, ...)`; with `counts` `(n,)` the values of all captions, end to end."""

    values: np.ndarray
    counts: np.ndarray | None = None


@dataclass(frozen=True)
class ColumnValues:
    """All that goes into a column's files.

    Attributes:
        parts: shard by shard; a generator's are written as they are made, so that memory does not grow with the set.
        extras: further arrays to keep in the folder, by name.
        figures: what came out, for the head.
    """

    parts: Iterable[ShardValues]
    extras: Mapping[str, np.ndarray] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)


def publish_column(url: str, head: ColumnHead, shards: Sequence[str], values: ColumnValues) -> ColumnHead:
    """Publish a column whole; returns its head with its files and figures.

    Args:
        head: without files.
        shards: names of the set's tars, in order.

    Raises:
        StorageError: a column of that name is there already, or the disk is full; nothing is left.
    """
    where = column_url(url, head.name)
    if not is_local(url):
        return _upload(where, head, shards, values)
    done: list[ColumnHead] = []

    def fill(folder: Path) -> None:
        def write(name: str, data: bytes) -> None:
            (folder / name).write_bytes(data)

        done.append(_fill(head, shards, values, write))

    publish_folder(fill, local(where))
    return done[0]


def sweep_column(url: str, name: str) -> None:
    """Remove what a killed writer of this column left; call it under the column's lock."""
    if not is_local(url):
        if exists(column_url(url, name)) and not exists(join(column_url(url, name), HEAD_NAME)):
            remove(column_url(url, name))
        return
    partial = re.compile(re.escape(f"{PARTIAL_PREFIX}{name}.") + r"[^.]+")  # with a dot it is another column's
    for path in local(join(url, FOLDER)).glob(f"{PARTIAL_PREFIX}*"):
        if partial.fullmatch(path.name):
            remove(path)


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
    head = _head_of(body, path)
    if head.name != name:  # its files would be looked for in the other folder
        raise ManifestError(f"{path}: says that it is column '{head.name}'. Give the folder its name back.")
    return head


def is_whole(url: str, head: ColumnHead) -> bool:
    """Whether every file of a column is there, byte for byte; reads them all."""
    paths = [(join(column_url(url, head.name), entry.name), entry.sha256) for entry in head.files]
    return all(exists(path) and hashlib.sha256(read_bytes(path)).hexdigest() == sha256 for path, sha256 in paths)


def column_names(url: str) -> list[str]:
    """Names of a set's finished columns, sorted."""
    return [name for name in _folders(url) if exists(join(url, FOLDER, name, HEAD_NAME))]


def unfinished_columns(url: str) -> list[str]:
    """Names of folders that hold no whole column: `column.json` is missing."""
    return [name for name in _folders(url) if not exists(join(url, FOLDER, name, HEAD_NAME))]


def text_column_of(urls: Sequence[str], spec: TextEncoderSpec) -> str | None:
    """The first text column that every set has, made by this encoder; None where there is none."""
    names = [set(column_names(url)) for url in urls]
    for name in sorted(set.intersection(*names)):
        heads = [load_head(url, name) for url in urls]
        if all(head.kind == TEXT and head.text_encoder == spec for head in heads):
            return name
    return None


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


def extra_file(name: str) -> str:
    """The file of a further array, as `centroids`."""
    return name + ".npy"


def encode_array(array: np.ndarray) -> bytes:
    """`.npy` bytes of version 1.0; equal arrays give equal bytes."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0))
    return buffer.getvalue()


def head_bytes(head: ColumnHead) -> bytes:
    """The bytes of `column.json`, with a hash of itself."""
    return _signed(json.loads(json.dumps(asdict(head))))


def _folders(url: str) -> list[str]:
    folder = join(url, FOLDER)
    names = list_folders(folder) if exists(folder) else []
    return [name for name in names if not name.startswith(PARTIAL_PREFIX)]


def _upload(where: str, head: ColumnHead, shards: Sequence[str], values: ColumnValues) -> ColumnHead:
    if exists(where):
        raise StorageError(f"{where}: is there already. Choose another name or delete it.")

    def write(name: str, data: bytes) -> None:
        publish_bytes(data, join(where, name))

    try:
        return _fill(head, shards, values, write)
    except BaseException:
        remove(where)
        raise


def _fill(
    head: ColumnHead, shards: Sequence[str], values: ColumnValues, write: Callable[[str, bytes], None]
) -> ColumnHead:
    """Write every file of the column, `column.json` last."""
    files: dict[str, ColumnFile] = {}

    def add(name: str, array: np.ndarray) -> None:
        if name in files:  # tars of others have any name
            raise ManifestError(f"column '{head.name}': two of its files would be called {name}. Rename that tar.")
        data = encode_array(array)
        files[name] = ColumnFile(name, len(data), hashlib.sha256(data).hexdigest(), xxhash.xxh3_64_hexdigest(data))
        write(name, data)

    for shard, part in zip(shards, values.parts, strict=True):
        assert part.values.dtype == head.dtype and part.values.shape[1:] == head.shape, f"{head.name}: {shard}"
        assert (part.counts is not None) == (head.per == "caption"), f"{head.name}: {shard}"
        add(values_file(shard), part.values)
        if part.counts is not None:
            assert part.counts.sum() == len(part.values), f"{head.name}: {shard}"
            add(counts_file(shard), part.counts.astype("<i4"))
    for name, array in values.extras.items():
        add(extra_file(name), array)
    whole = replace(head, files=tuple(files.values()), figures=dict(values.figures))
    write(HEAD_NAME, head_bytes(whole))
    return whole


def _head_of(body: dict[str, Any], path: str) -> ColumnHead:
    remedy = "Update shardclip, or delete the column and make it again."
    files = tuple(fill(ColumnFile, entry, path, ManifestError, remedy) for entry in body.get("files", ()))
    lists = {name: tuple(body[name]) for name in ("shape", "classes") if name in body}
    return fill(ColumnHead, {**body, **lists, "files": files}, path, ManifestError, remedy)


def _signed(body: dict[str, Any]) -> bytes:
    digest = hashlib.sha256(json.dumps(body, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
    return (json.dumps({**body, "column_sha256": digest}, indent=1, ensure_ascii=False) + "\n").encode()
