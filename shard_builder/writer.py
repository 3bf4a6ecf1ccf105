"""Write one shard: a pure task, run by an engine in a process without torch; equal tasks give equal bytes."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from core.errors import StorageError
from core.image import RAW_EXTENSION, ImageError, decode_fitted, encode_jpeg, encode_raw
from core.manifest import ImageSpec, ShardEntry, TextEncoderSpec, index_name
from core.shard_index import IMAGE, JSON, NPY, RECORD, TXT, Member, ShardIndex, checksum, encode_index, image_id_of
from core.storage import exists, is_local, join, publish, publish_bytes, read_bytes
from shard_builder.caption_cache import CaptionCache
from shard_builder.layout import ShardPlan, key_of
from shard_builder.records import Record, Skip

MEMBERS = (IMAGE, TXT, JSON, NPY)  # in the tar's order
_BLOCK = 512
_END = bytes(2 * _BLOCK)
_HEADER = tarfile.TarInfo("").tobuf(tarfile.USTAR_FORMAT)  # time 0, owner 0, mode 644: nothing of this machine


@dataclass(frozen=True)
class ShardTask:
    """All that decides one shard's bytes, and where it goes."""

    plan: ShardPlan
    out: str
    image: ImageSpec
    max_pixels: int
    caption_cache: Path
    text_encoder: TextEncoderSpec

    @property
    def name(self) -> str:
        return self.plan.name

    def describe(self, position: int) -> str:
        """The image at `position`, for an error message."""
        return self.plan.describe(position)


@dataclass(frozen=True)
class ShardResult:
    """What became of a shard's records."""

    entry: ShardEntry | None  # None: no image of it could be used, and no file was written
    skipped: tuple[Skip, ...]
    source_bytes: int  # read
    num_enlarged: int  # images whose shorter side is below the stored size
    inputs: str = ""  # hash of what it was made of; "": noted by a version that did not say


@dataclass(frozen=True)
class PreparedImage:
    """An image as it is stored, and the size of its original in pixels."""

    data: bytes
    width: int
    height: int


def write_shard(task: ShardTask, report: Callable[[int], None]) -> ShardResult:
    """Write `NAME.tar` and `NAME.idx`, each whole; `report(n)` says that n images are done."""
    tally = _Tally()
    try:
        sha256 = publish(lambda path: _write_tar(task, path, tally, report), join(task.out, task.name))
    except _NothingUsableError:
        return ShardResult(None, tuple(tally.skipped), tally.source_bytes, 0)
    members = tuple(Member(name, task.name) for name in MEMBERS)
    index = ShardIndex(members, np.array(tally.rows, dtype=RECORD), np.array(tally.image_ids, dtype=np.uint64))
    index_sha256 = publish_bytes(encode_index(index), join(task.out, index_name(task.name)))
    entry = ShardEntry(task.name, len(index), tally.num_captions, tally.bytes, sha256, index_sha256)
    return ShardResult(entry, tuple(tally.skipped), tally.source_bytes, tally.num_enlarged)


def prepare_image(data: bytes, image: ImageSpec, max_pixels: int) -> PreparedImage:
    """Decode, fit and encode one image.

    Raises:
        ImageError: it cannot be used.
    """
    fitted, original = decode_fitted(data, image.size, image.fit, max_pixels)
    stored = encode_raw(fitted) if image.codec == "raw" else encode_jpeg(fitted, image.quality)
    return PreparedImage(stored, *original)


def npy_bytes(array: np.ndarray) -> bytes:
    """Embeddings as the `.npy` that a shard or a sidecar holds: float16."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array, dtype="<f2"), version=(1, 0))
    return buffer.getvalue()


class _NothingUsableError(Exception):
    """Ends the writing of a shard that would hold no sample; the partial file goes."""


class _Tally:
    """What a shard holds so far."""

    def __init__(self) -> None:
        self.rows: list[list[tuple[int, int, int]]] = []  # per sample and member: offset, xxh3, length
        self.image_ids: list[int] = []
        self.skipped: list[Skip] = []
        self.num_captions = self.num_enlarged = self.source_bytes = self.bytes = 0


def _write_tar(task: ShardTask, path: Path, tally: _Tally, report: Callable[[int], None]) -> None:
    extensions = (RAW_EXTENSION if task.image.codec == "raw" else "jpg", TXT, JSON, NPY)
    with open(path, "wb") as tar:
        for position, (record, embeddings) in enumerate(_with_embeddings(task)):
            report(position)
            prepared = _prepare(record, task, tally)
            if isinstance(prepared, Skip):
                tally.skipped.append(prepared)
                continue
            key = key_of(task.plan.first_key + position)
            values = (prepared.data, record.captions[0].encode(), _info(record, prepared), npy_bytes(embeddings))
            tally.rows.append([_append(tar, f"{key}.{ext}", data) for ext, data in zip(extensions, values)])
            tally.image_ids.append(image_id_of(record.source, record.image_id))
            tally.num_captions += len(record.captions)
            tally.num_enlarged += min(prepared.width, prepared.height) < task.image.size
        report(len(task.plan.records))
        if not tally.image_ids:
            raise _NothingUsableError
        tar.write(_END)
        tar.write(bytes(-tar.tell() % tarfile.RECORDSIZE))
        tally.bytes = tar.tell()


def _with_embeddings(task: ShardTask) -> Iterator[tuple[Record, np.ndarray]]:
    captions = [caption for record in task.plan.records for caption in record.captions]
    embeddings = _open_cache(task.caption_cache, task.text_encoder).lookup(captions)
    start = 0
    for record in task.plan.records:
        yield record, embeddings[start : start + len(record.captions)]
        start += len(record.captions)


@lru_cache(maxsize=1)
def _open_cache(folder: Path, spec: TextEncoderSpec) -> CaptionCache:
    return CaptionCache(folder, spec)  # opened once per process: a big build's index takes a second to read


def _prepare(record: Record, task: ShardTask, tally: _Tally) -> PreparedImage | Skip:
    try:
        data = read_bytes(record.image)
    except StorageError as error:
        if not exists(record.image):
            return Skip(record.image_id, record.source, "missing_image", record.image)
        if not is_local(record.image):
            raise  # a network's failure passes; leaving the image out would make the set depend on the hour
        return Skip(record.image_id, record.source, "unreadable", str(error))
    tally.source_bytes += len(data)
    try:
        return prepare_image(data, task.image, task.max_pixels)
    except ImageError as error:
        detail = re.sub(r" at 0x\w+", "", error.detail)  # PIL names objects by address: not the same bytes twice
        return Skip(record.image_id, record.source, error.reason, f"{record.image}: {detail}")


def _info(record: Record, prepared: PreparedImage) -> bytes:
    info: dict[str, Any] = {
        "image_id": record.image_id,
        "source": record.source,
        "captions": record.captions,
        "label": record.label,
        "topic": None,
        "width": prepared.width,
        "height": prepared.height,
    }
    if record.synonyms:
        info["synonyms"] = record.synonyms
    return json.dumps(info, ensure_ascii=False).encode()


def _append(tar: BinaryIO, name: str, data: bytes) -> tuple[int, int, int]:
    tar.write(_header(name, len(data)))
    offset = tar.tell()
    tar.write(data)
    tar.write(bytes(-len(data) % _BLOCK))
    return offset, checksum(data), len(data)


def _header(name: str, size: int) -> bytes:
    # Filled in by hand: tarfile takes 30 us for what is 2 % of a sample's time. A test compares the bytes.
    header = bytearray(_HEADER)
    header[: len(name)] = name.encode("ascii")
    header[124:136] = b"%011o\0" % size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)
