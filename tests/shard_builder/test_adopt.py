"""Tars of others become shard sets: nothing in them is touched, and what cannot be used is listed."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from photo_folders import folder_bytes, picture
from rich.console import Console

from core.config import Choice
from core.errors import DamagedError, DataError, ManifestError, StorageError
from core.image import decode_into
from core.shard_index import IMAGE, read_index
from core.shard_set import ShardSet
from shard_builder.adopt import index_shards
from shard_builder.embed import embed_shards
from shard_builder.verify import verify

MINILM = Choice("minilm")


def write_tars(folder: Path, samples: list[dict[str, Any]], per_tar: int = 4) -> Path:
    """Tars as webdataset's own writer makes them."""
    folder.mkdir()
    with webdataset.ShardWriter(str(folder / "%05d.tar"), maxcount=per_tar, verbose=0) as writer:
        for sample in samples:
            writer.write(sample)
    return folder


def others(count: int = 10) -> list[dict[str, Any]]:
    """Samples of every accepted kind: jpg, png and webp; txt, json caption, json captions."""
    samples: list[dict[str, Any]] = []
    for number in range(count):
        extension, form = [("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP")][number % 3]
        texts: dict[str, Any] = [
            {"txt": f"a text {number}"},
            {"json": {"caption": f"one caption {number}", "url": f"http://x/{number % 5}", "width": 9}},
            {"json": {"captions": [f"first {number}", f"second {number}"], "image_id": f"id.{number}"}, "txt": "other"},
        ][number // 2 % 3]
        samples.append({"__key__": f"shop/item_{number}", extension: picture(number, (40 + number, 30), form), **texts})
    return samples


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tars(tmp_path / "laion", others())


def index(folder: Path, console: Console, **settings: Any) -> Any:
    return index_shards(str(folder), size=24, workers=1, console=console, **settings)


def test_an_indexed_folder_reads_like_a_set(folder: Path, console: Console) -> None:
    before = folder_bytes(folder)
    manifest = index(folder, console)
    assert (manifest.num_samples, manifest.num_captions, manifest.skipped) == (10, 12, {})
    assert (manifest.image.codec, manifest.text_encoder) == ("mixed", None)
    shard_set = ShardSet.open(str(folder))
    assert [shard_set.key(n) for n in range(10)] == [f"shop/item_{n}" for n in range(10)]
    assert shard_set.captions(0) == ["a text 0"]
    assert shard_set.captions(2) == ["one caption 2"]
    assert shard_set.captions(4) == ["first 4", "second 4"]
    pixels = np.empty((24, 24, 3), np.uint8)
    for sample in range(10):
        decode_into(shard_set.member(sample, IMAGE), shard_set.image, pixels)
    with pytest.raises(ManifestError, match="shardclip embed"):
        _ = shard_set.embed_dim
    assert {name: data for name, data in folder_bytes(folder).items() if name.endswith(".tar")} == before
    assert verify(str(folder), workers=1, console=console) == []


def test_samples_of_one_url_are_one_image(folder: Path, console: Console) -> None:
    index(folder, console)
    shard_set = ShardSet.open(str(folder))
    image_ids = shard_set.image_ids(np.arange(10)).tolist()
    assert shard_set.info(3)["url"] == shard_set.info(8)["url"]
    assert image_ids[3] == image_ids[8]
    assert len(set(image_ids)) == 9


def test_unusable_samples_are_listed_and_left_out(tmp_path: Path, console: Console) -> None:
    good = picture(1, (30, 30))
    samples = [
        {"__key__": "good", "jpg": good, "txt": "fine"},
        {"__key__": "textless", "jpg": good},
        {"__key__": "blank", "jpg": good, "txt": "  "},
        {"__key__": "imageless", "txt": "nothing to see"},
        {"__key__": "broken", "jpg": good, "json": b"{"},
        {"__key__": "number", "jpg": good, "json": {"caption": 7}},
        {"__key__": "text", "jpg": good, "json": {"captions": "one string"}},
        {"__key__": "latin", "jpg": good, "txt": "caf\xe9".encode("latin-1")},
    ]
    folder = write_tars(tmp_path / "odd", samples, per_tar=100)
    manifest = index(folder, console)
    assert manifest.skipped == {"no_caption": 4, "no_image": 1, "unreadable_caption": 2}
    assert (manifest.num_samples, manifest.num_inputs) == (1, 8)
    rejected = [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]
    assert {r["image_id"] for r in rejected} == {s["__key__"] for s in samples[1:]}
    assert verify(str(folder), workers=1, console=console) == []


def test_a_folder_without_one_usable_sample_is_an_error(tmp_path: Path, console: Console) -> None:
    folder = write_tars(tmp_path / "odd", [{"__key__": "a", "txt": "x"}])
    with pytest.raises(DataError, match="no sample has both an image and a caption .*no_image"):
        index(folder, console)
    (tmp_path / "empty").mkdir()
    with pytest.raises(StorageError, match="holds no .tar file"):
        index(tmp_path / "empty", console)


def test_a_tar_cut_short_is_refused_by_name(folder: Path, console: Console) -> None:
    tar = folder / "00001.tar"
    tar.write_bytes(tar.read_bytes()[:6000])
    with pytest.raises(DamagedError, match=r"00001\.tar"):
        index(folder, console)
    assert not (folder / "manifest.json").exists()


def test_statistics_of_img2dataset_are_ignored(folder: Path, console: Console) -> None:
    (folder / "00000_stats.json").write_text('{"count": 4}')
    (folder / "00000.parquet").write_bytes(b"PAR1")
    index(folder, console)
    assert verify(str(folder), workers=1, console=console) == []


def test_embeddings_join_in_a_column(folder: Path, console: Console, caption_cache: Path) -> None:
    index(folder, console)
    before = folder_bytes(folder)
    (head,) = embed_shards(str(folder), MINILM, cache_dir=caption_cache, console=console)
    assert {name: data for name, data in folder_bytes(folder).items() if not name.startswith("columns/")} == before
    shard_set = ShardSet.open(str(folder))
    assert (shard_set.text, shard_set.text_encoder) == ("text.minilm", head.text_encoder)
    for sample in range(10):
        embeddings = shard_set.embeddings(sample)
        assert embeddings.shape == (len(shard_set.captions(sample)), shard_set.embed_dim)
        np.testing.assert_allclose(np.linalg.norm(embeddings.astype(float), axis=1), 1, atol=2e-3)
    assert len({shard_set.embeddings(n).tobytes() for n in range(10)}) == 10
    assert verify(str(folder), workers=1, console=console) == []


def test_an_image_twice_in_a_sample_takes_the_first_kind(tmp_path: Path, console: Console) -> None:
    sample = {"__key__": "a", "png": picture(1, (30, 30), "PNG"), "jpg": picture(2, (30, 30)), "txt": "both"}
    folder = write_tars(tmp_path / "both", [sample])
    index(folder, console)
    (record,) = read_index(folder / "00000.idx").records
    with tarfile.open(folder / "00000.tar") as tar:
        assert int(record[0]["offset"]) == tar.getmember("a.jpg").offset_data


def test_the_console_says_what_was_found(folder: Path) -> None:
    console = Console(file=io.StringIO(), width=140)
    index(folder, console)
    assert "10 in 3 shards" in console.file.getvalue()  # type: ignore[attr-defined]
