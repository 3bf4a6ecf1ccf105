"""Where each member of each sample lies in a tar, and its checksum: the `.idx` beside a shard.

Layout, little-endian: magic, length of the JSON header (uint32), JSON header, padding to 16 bytes,
`image_ids` (num_samples uint64), `records` (num_samples x num_members of offset, xxh3, length: 20 bytes each).
A member with length 0 is absent.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from core.errors import DamagedError

IMAGE, TXT, JSON, NPY = "image", "txt", "json", "npy"  # logical members; the image's extension may vary
RECORD = np.dtype([("offset", "<u8"), ("xxh3", "<u8"), ("length", "<u4")])
MAGIC = b"SCLIPIX1"  # how an index begins
_BLOCK = 512  # of a tar


@dataclass(frozen=True)
class Member:
    """A kind of file that samples have, and the file beside the index that holds its bytes."""

    name: str  # image | txt | json | npy
    file: str  # "train-00000.tar", or a sidecar


@dataclass(frozen=True)
class ShardIndex:
    """The index of one shard.

    Attributes:
        members: the kinds of files, in the order of the columns of `records`.
        records: `(num_samples, num_members)` of `RECORD`.
        image_ids: `(num_samples,)` uint64; samples of one image share a value (`image_id_of`).
    """

    members: tuple[Member, ...]
    records: np.ndarray
    image_ids: np.ndarray

    def __len__(self) -> int:
        return len(self.image_ids)

    def column(self, name: str) -> int:
        """The column of `records` for a member."""
        return [m.name for m in self.members].index(name)


@dataclass(frozen=True)
class TarSample:
    """One sample found in a tar: `members` maps extension to (offset, length) of its bytes."""

    key: str
    members: dict[str, tuple[int, int]]


def image_id_of(source: str, image_id: str) -> int:
    """The 64-bit number that all samples of one image share: positives come from it."""
    return xxhash.xxh3_64_intdigest(f"{source}\0{image_id}".encode())


def checksum(data: bytes | memoryview) -> int:
    """The member checksum (xxh3, 64 bit: about 20 GB/s, where CRC-32 would cost a tenth of the decoding)."""
    return xxhash.xxh3_64_intdigest(data)


def samples_fingerprint(indexes: Iterable[ShardIndex]) -> str:
    """Identity of a set's samples, their order, and how they are cut into shards; sha256 in hexadecimal.

    Made of the length and checksum of each sample's picture, first caption and JSON, shard by shard, so that indexes of
    any age give it; what a sample or an index lacks counts as zeros. Embeddings are left out: columns add more of
    them, and a set stays what it is.
    """
    digest = hashlib.sha256()
    for index in indexes:
        digest.update(len(index).to_bytes(8, "little"))
        for name in (IMAGE, TXT, JSON):
            has = any(member.name == name for member in index.members)
            records = index.records[:, index.column(name)] if has else np.zeros(len(index), RECORD)
            digest.update(np.ascontiguousarray(records["xxh3"]).astype("<u8").tobytes())
            digest.update(np.ascontiguousarray(records["length"]).astype("<u4").tobytes())
    return digest.hexdigest()


def encode_index(index: ShardIndex) -> bytes:
    """The index as bytes; equal indexes give equal bytes."""
    members = [[m.name, m.file] for m in index.members]
    header = json.dumps({"num_samples": len(index), "members": members}).encode()
    lead = MAGIC + np.uint32(len(header)).tobytes() + header
    padding = b"\0" * (-len(lead) % 16)
    records = np.ascontiguousarray(index.records, dtype=RECORD)
    return lead + padding + np.asarray(index.image_ids, dtype="<u8").tobytes() + records.tobytes()


def decode_index(data: bytes | memoryview, where: str) -> ShardIndex:
    """The index in `data`.

    Raises:
        DamagedError: not an index, or cut short.
    """
    data = memoryview(data)
    if bytes(data[:7]) == MAGIC[:7] and bytes(data[:8]) != MAGIC:
        raise DamagedError(f"{where}: an index of a newer format. Update shardclip.")
    try:
        if bytes(data[:8]) != MAGIC:
            raise ValueError
        header_end = 12 + int(np.frombuffer(data, "<u4", 1, 8)[0])
        header = json.loads(bytes(data[12:header_end]))
        members = tuple(Member(*m) for m in header["members"])
        start, n = header_end + (-header_end % 16), int(header["num_samples"])
        image_ids = np.frombuffer(data, "<u8", n, start)
        records = np.frombuffer(data, RECORD, n * len(members), start + 8 * n).reshape(n, len(members))
    except (ValueError, KeyError, TypeError, IndexError):
        raise DamagedError(
            f"{where}: no shard index, or cut short. Restore it, or build or index the set again."
        ) from None
    return ShardIndex(members, records, image_ids)


def read_index(path: Path) -> ShardIndex:
    """Read the index at `path`, without comparing it to a manifest."""
    return decode_index(path.read_bytes(), str(path))


def scan_tar(path: Path) -> list[TarSample]:
    """Every sample of a tar in WebDataset's grouping: contiguous members that share the name up to the first dot.

    Raises:
        DamagedError: a header is damaged, the file is cut short, or the end marker is missing: never a short list.
    """
    samples: list[TarSample] = []
    end = 0
    try:
        with tarfile.open(path, "r:", ignore_zeros=False) as tar:
            for info in tar:
                end = info.offset_data + -(-info.size // _BLOCK) * _BLOCK
                if not info.isfile():
                    continue
                key, extension = split_name(info.name)
                if not samples or samples[-1].key != key:
                    samples.append(TarSample(key, {}))
                if extension in samples[-1].members:
                    raise DamagedError(f"{path}: sample {key}: member .{extension} stands twice.")
                samples[-1].members[extension] = (info.offset_data, info.size)
    except tarfile.TarError as error:
        raise DamagedError(f"{path}: damaged tar ({error}). Fetch or build it again.") from error
    _check_end(path, end)
    return samples


def split_name(name: str) -> tuple[str, str]:
    """WebDataset's key and extension: `a/b.seg.png` -> (`a/b`, `seg.png`)."""
    folder, slash, base = name.rpartition("/")
    key, _, extension = base.partition(".")
    return folder + slash + key, extension.lower()


def _check_end(path: Path, end: int) -> None:
    # tarfile takes a damaged header in the middle for the end of the archive; two zero blocks are the real end.
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        file.seek(end)
        if end > size or file.read(2 * _BLOCK) != b"\0" * 2 * _BLOCK:
            raise DamagedError(
                f"{path}: the tar breaks off or is damaged at byte {end} of {size}. Fetch or build it again."
            )
        while block := file.read(1 << 20):
            if block.strip(b"\0"):
                raise DamagedError(f"{path}: a damaged header at byte {end} hides samples. Fetch or build it again.")
