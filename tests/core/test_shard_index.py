"""An index says where each member lies; a tar is scanned to its true end or refused."""

from __future__ import annotations

import hashlib
import io
import json
import random
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest

from core.errors import DamagedError
from core.shard_index import (
    RECORD,
    Member,
    ShardIndex,
    decode_index,
    encode_index,
    image_id_of,
    samples_fingerprint,
    scan_tar,
    split_name,
)


def write_tar(path: Path, names: list[str]) -> dict[str, bytes]:
    files = {name: f"content of {name}".encode() * 50 for name in names}
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return files


def test_an_index_reads_back_equal() -> None:
    records = np.zeros((3, 2), RECORD)
    records["offset"], records["length"], records["xxh3"] = np.arange(6).reshape(3, 2), 7, 2**64 - 1
    index = ShardIndex((Member("image", "a.tar"), Member("npy", "a.emb")), records, np.array([1, 2, 2**63], "<u8"))
    again = decode_index(encode_index(index), "a.idx")
    assert again.members == index.members and np.array_equal(again.image_ids, index.image_ids)
    assert np.array_equal(again.records, records) and encode_index(again) == encode_index(index)
    for end in (0, 5, 20, len(encode_index(index)) - 1):
        with pytest.raises(DamagedError, match="a.idx: no shard index, or cut short"):
            decode_index(encode_index(index)[:end], "a.idx")
    with pytest.raises(DamagedError, match="a.idx: no shard index, or cut short"):
        decode_index(b"X" + encode_index(index)[1:], "a.idx")


def test_an_index_lies_as_stated() -> None:
    for name in ("a.tar", "ab.tar", "a_long_name.tar"):
        records = np.arange(40, dtype=np.uint8).view(RECORD).reshape(2, 1)
        data = encode_index(ShardIndex((Member("image", name),), records, np.array([3, 2**63], "<u8")))
        (length,) = struct.unpack("<I", data[8:12])
        start = -(-(12 + length) // 16) * 16
        assert data[:8] == b"SCLIPIX1" and set(data[12 + length : start]) <= {0}
        assert json.loads(data[12 : 12 + length]) == {"num_samples": 2, "members": [["image", name]]}
        assert data[start:] == struct.pack("<2Q", 3, 2**63) + bytes(range(40))


def test_the_samples_fingerprint_is_the_stated_hash() -> None:
    """Length and checksum of picture, first caption and JSON, shard by shard; what is absent counts as zeros."""
    draw, digest, indexes = np.random.default_rng(0), hashlib.sha256(), []
    for names in (("npy", "image", "txt", "json"), ("image", "npy"), ()):
        records = np.zeros((3, len(names)), RECORD)
        for field in ("offset", "xxh3", "length"):
            records[field] = draw.integers(0, 2**32, records.shape)
        indexes.append(ShardIndex(tuple(Member(n, "a.tar") for n in names), records, np.arange(3, dtype="<u8")))
        digest.update(struct.pack("<Q", 3))
        for name in ("image", "txt", "json"):
            own = records[:, names.index(name)] if name in names else np.zeros(3, RECORD)
            digest.update(struct.pack("<3Q", *own["xxh3"].tolist()) + struct.pack("<3I", *own["length"].tolist()))
    assert samples_fingerprint(indexes) == digest.hexdigest() != samples_fingerprint(indexes[::-1])


def test_scanning_finds_what_was_written(tmp_path: Path) -> None:
    names = ["a/0.jpg", "a/0.txt", "1.JPG", "1.seg.png", "2.jpg"]
    files = write_tar(tmp_path / "t.tar", names)
    samples = scan_tar(tmp_path / "t.tar")
    assert [s.key for s in samples] == ["a/0", "1", "2"] and set(samples[1].members) == {"jpg", "seg.png"}
    data = (tmp_path / "t.tar").read_bytes()
    offset, length = samples[1].members["seg.png"]
    assert data[offset : offset + length] == files["1.seg.png"]


def test_a_damaged_or_short_tar_is_never_a_short_list(tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    write_tar(path, [f"{i}.jpg" for i in range(20)])
    whole, draw = path.read_bytes(), random.Random(0)
    for _ in range(40):
        header = 1536 * draw.randrange(1, 20)  # 512 of header + 1024 of data, rounded up
        data = bytearray(whole)
        data[header + draw.choice([0, 124, 130, 148])] ^= 0x41
        path.write_bytes(data)
        with pytest.raises(DamagedError, match=r"t\.tar"):
            scan_tar(path)
    for end in (100, 5000, 1536 * 20):
        path.write_bytes(whole[:end])
        with pytest.raises(DamagedError):
            scan_tar(path)


def test_folders_are_passed_over_and_the_length_is_that_of_the_file(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for name, data in (("a", None), ("a/0.txt", b"x" * 512), ("a/1.txt", b"")):
            info = tarfile.TarInfo(name)
            info.type, info.size = (tarfile.DIRTYPE, 0) if data is None else (tarfile.REGTYPE, len(data))
            tar.addfile(info, None if data is None else io.BytesIO(data))
    assert [(s.key, s.members) for s in scan_tar(tmp_path / "t.tar")] == [
        ("a/0", {"txt": (1024, 512)}),
        ("a/1", {"txt": (2048, 0)}),
    ]


def test_a_member_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("0.jpg", "0.JPG"):
            tar.addfile(tarfile.TarInfo(name))
    with pytest.raises(DamagedError, match=r"t\.tar: sample 0: member \.jpg stands twice"):
        scan_tar(path)


@pytest.mark.parametrize("zeros", [0, 512, 1024, 3 << 20])
def test_a_tar_ends_with_two_zero_blocks_and_nothing_but_zeros(tmp_path: Path, zeros: int) -> None:
    path = tmp_path / "t.tar"
    write_tar(path, ["0.jpg"])
    content = path.read_bytes()[: 512 + 1024]  # header and data; then the end
    path.write_bytes(content + bytes(zeros))
    if zeros < 1024:
        with pytest.raises(DamagedError, match=rf"breaks off or is damaged at byte 1536 of {1536 + zeros}\."):
            scan_tar(path)
        return
    assert len(scan_tar(path)) == 1
    path.write_bytes(bytes(zeros))
    assert scan_tar(path) == []
    path.write_bytes(content + bytes(zeros) + b"x")
    with pytest.raises(DamagedError, match="a damaged header at byte 1536 hides samples"):
        scan_tar(path)


def test_names_split_at_the_first_dot() -> None:
    assert split_name("dir.d/key.seg.png") == ("dir.d/key", "seg.png")
    assert image_id_of("coco", "1") == image_id_of("coco", "1") != image_id_of("coco", "11")
