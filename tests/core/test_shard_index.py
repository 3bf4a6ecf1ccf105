"""An index says where each member lies; a tar is scanned to its true end or refused."""

from __future__ import annotations

import io
import random
import tarfile
from pathlib import Path

import numpy as np
import pytest

from core.errors import DamagedError
from core.shard_index import RECORD, Member, ShardIndex, decode_index, encode_index, image_id_of, scan_tar, split_name


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


def test_names_split_at_the_first_dot() -> None:
    assert split_name("dir.d/key.seg.png") == ("dir.d/key", "seg.png")
    assert image_id_of("coco", "1") == image_id_of("coco", "1") != image_id_of("coco", "11")
