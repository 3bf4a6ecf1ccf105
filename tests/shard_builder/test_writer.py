"""One shard: tars that any tool reads, an index that points right, and a reason for every image left out."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import webdataset
from photo_folders import folder_bytes, picture
from PIL import Image

from core.manifest import ImageSpec, TextEncoderSpec
from core.shard_index import IMAGE, JSON, NPY, TXT, checksum, image_id_of, read_index, scan_tar
from shard_builder import writer
from shard_builder.layout import ShardPlan
from shard_builder.records import Record
from shard_builder.writer import ShardResult, ShardTask, write_shard

SPEC = TextEncoderSpec("none", "0", 4, "")


class FakeCache:
    """Embeddings that tell which caption they are of."""

    def lookup(self, captions: list[str]) -> np.ndarray:
        return np.array([[len(c), ord(c[0]), 0, 1] for c in captions], dtype=np.float16).reshape(-1, 4)


@pytest.fixture(autouse=True)
def fake_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_open_cache", lambda folder, spec: FakeCache())


def write(folder: Path, files: dict[str, bytes], codec: str = "jpeg", max_pixels: int = 10**8) -> ShardResult:
    """Write a shard of these image files, two captions each."""
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    records = tuple(Record(n, "test", str(folder / n), (f"{n} é one", f"{n} two"), "dog") for n in files)
    plan = ShardPlan("train-00002.tar", 2000, records)
    out = str(folder / "out")
    return write_shard(ShardTask(plan, out, ImageSpec(24, "crop", codec, 95), max_pixels, folder, SPEC), lambda n: None)


def photos(count: int) -> dict[str, bytes]:
    return {f"{n}.jpg": picture(n, (50, 40 + n)) for n in range(count)}


@pytest.mark.parametrize("codec", ["jpeg", "raw"])
def test_the_tar_is_what_tarfile_would_write(tmp_path: Path, codec: str) -> None:
    write(tmp_path, photos(3), codec)
    written = (tmp_path / "out/train-00002.tar").read_bytes()
    again = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(written)) as source,
        tarfile.open(fileobj=again, mode="w", format=tarfile.USTAR_FORMAT) as target,
    ):
        for member in source:
            plain = tarfile.TarInfo(member.name)  # time 0, owner 0, mode 644
            plain.size = member.size
            target.addfile(plain, source.extractfile(member))
    assert written == again.getvalue()


def test_members_stand_together_under_running_numbers(tmp_path: Path) -> None:
    write(tmp_path, photos(2))
    names = list(folder_tar(tmp_path))
    assert names == [f"00000200{n}.{extension}" for n in (0, 1) for extension in ("jpg", "txt", "json", "npy")]


def test_the_index_points_at_every_member(tmp_path: Path) -> None:
    result = write(tmp_path, photos(3))
    tar = (tmp_path / "out/train-00002.tar").read_bytes()
    index = read_index(tmp_path / "out/train-00002.idx")
    assert result.entry is not None
    assert (len(index), result.entry.num_samples, result.entry.num_captions) == (3, 3, 6)
    assert [m.name for m in index.members] == [IMAGE, TXT, JSON, NPY]
    for row, sample in enumerate(scan_tar(tmp_path / "out/train-00002.tar")):
        for record, place in zip(index.records[row], sample.members.values()):
            offset, length = int(record["offset"]), int(record["length"])
            assert (offset, length) == place
            assert int(record["xxh3"]) == checksum(tar[offset : offset + length])
        info = json.loads(tar[slice(*start_and_end(sample.members["json"]))])
        assert int(index.image_ids[row]) == image_id_of("test", info["image_id"])


def start_and_end(place: tuple[int, int]) -> tuple[int, int]:
    return place[0], place[0] + place[1]


@pytest.mark.parametrize("codec", ["jpeg", "raw"])
def test_webdataset_decodes_the_samples(tmp_path: Path, codec: str) -> None:
    write(tmp_path, photos(3), codec)
    url = str(tmp_path / "out/train-00002.tar")
    samples = list(webdataset.WebDataset(url, shardshuffle=False).decode("rgb8"))
    assert [sample["__key__"] for sample in samples] == ["000002000", "000002001", "000002002"]
    for number, sample in enumerate(samples):
        pixels = sample["image.npy" if codec == "raw" else "jpg"]
        assert (pixels.shape, pixels.dtype) == ((24, 24, 3), np.uint8)
        assert sample["txt"] == f"{number}.jpg é one"
        assert sample["json"] == {
            "image_id": f"{number}.jpg",
            "source": "test",
            "captions": [f"{number}.jpg é one", f"{number}.jpg two"],
            "label": "dog",
            "topic": None,
            "width": 50,
            "height": 40 + number,
        }
        assert sample["npy"].dtype == np.float16
        np.testing.assert_array_equal(sample["npy"], FakeCache().lookup(sample["json"]["captions"]))


def test_the_stored_picture_is_the_original_cropped_and_resized(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": picture(1, (60, 40), "PNG")}, "raw")
    stored = np.load(io.BytesIO(next(iter(folder_tar(tmp_path).values()))))
    expected = Image.open(tmp_path / "a.png").crop((10, 0, 50, 40)).resize((24, 24), Image.Resampling.BICUBIC)
    assert np.abs(stored.astype(int) - np.asarray(expected)).max() <= 2


def folder_tar(folder: Path) -> dict[str, bytes]:
    with tarfile.open(folder / "out/train-00002.tar") as tar:
        return {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(100))))
    packed = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


HOSTILE = {
    "truncated": (picture(1, (200, 200))[:2000], "truncated"),
    "text": (b"<html>404 not found</html>", "unreadable"),
    "empty": (b"", "unreadable"),
    "gigapixels": (png_header(60000, 60000), "too_many_pixels"),
    "one_pixel": (picture(1, (1, 1), "PNG"), "too_small"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_image_is_left_out_with_its_reason_and_leaves_a_gap(tmp_path: Path, kind: str) -> None:
    data, reason = HOSTILE[kind]
    files = {"0.jpg": picture(0, (40, 40)), "bad": data, "2.jpg": picture(2, (40, 40))}
    result = write(tmp_path, files)
    assert [(skip.image_id, skip.reason) for skip in result.skipped] == [("bad", reason)]
    assert " at 0x" not in result.skipped[0].detail
    assert {name.split(".")[0] for name in folder_tar(tmp_path)} == {"000002000", "000002002"}
    assert result.entry is not None and result.entry.num_samples == 2


def test_an_image_gone_since_it_was_listed_is_counted(tmp_path: Path) -> None:
    records = tuple(Record(n, "test", str(tmp_path / n), ("x",)) for n in ("gone.jpg", "here.jpg"))
    (tmp_path / "here.jpg").write_bytes(picture(1, (40, 40)))
    plan = ShardPlan("train-00000.tar", 0, records)
    task = ShardTask(plan, str(tmp_path / "out"), ImageSpec(24), 10**8, tmp_path, SPEC)
    result = write_shard(task, lambda n: None)
    assert [(skip.image_id, skip.reason) for skip in result.skipped] == [("gone.jpg", "missing_image")]


def test_a_shard_without_a_usable_image_leaves_no_file(tmp_path: Path) -> None:
    result = write(tmp_path, {"bad": b"nothing"})
    assert result.entry is None
    assert len(result.skipped) == 1
    assert folder_bytes(tmp_path / "out") == {}


def test_equal_tasks_give_equal_bytes(tmp_path: Path) -> None:
    files = {**photos(3), "bad": b"nothing"}
    first = write(tmp_path, files)
    before = folder_bytes(tmp_path / "out")
    second = write(tmp_path, files)
    assert (second, folder_bytes(tmp_path / "out")) == (first, before)


def test_enlarged_originals_are_counted(tmp_path: Path) -> None:
    result = write(tmp_path, {"small.jpg": picture(1, (100, 23)), "large.jpg": picture(2, (24, 24))})
    assert result.num_enlarged == 1
    assert result.source_bytes == sum(len((tmp_path / n).read_bytes()) for n in ("small.jpg", "large.jpg"))
