"""Tars of others become shard sets: nothing in them is touched, and what cannot be used is listed."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign_tars import add_tar, others, write_tars
from photo_folders import folder_bytes, picture
from rich.console import Console

from core.config import Choice
from core.errors import DamagedError, DataError, ManifestError, StorageError
from core.image import decode_into
from core.manifest import load_manifest
from core.shard_index import IMAGE, read_index
from core.shard_set import ShardSet
from shard_builder.embed import embed_shards
from shard_builder.index_tars import index_shards
from shard_builder.verify import verify


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
    (head,) = embed_shards(str(folder), Choice("minilm"), cache_dir=caption_cache, console=console)
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


@pytest.mark.parametrize(
    ("name", "data", "is_stranger"),
    [
        ("00009.tar", b"", True),
        ("00000.1a2b3c4d.idx", b"SCLIPIX1 and more", True),
        ("00000.emb", b"\x93NUMPY and more", True),
        (".partial-00000.idx.x", b"", True),
        ("00000.idx.bak", b"SCLIPIX1", False),
        ("theirs.idx", b"v1.2 4", False),
        ("theirs.emb", b"words", False),
        ("00000_stats.json", b"{}", False),
        ("00000.parquet", b"PAR1", False),
        ("contact_sheet.jpg", b"", False),
    ],
)
def test_beside_others_tars_only_ours_are_strangers(
    folder: Path, console: Console, here: None, name: str, data: bytes, is_stranger: bool
) -> None:
    index(folder, console)
    (folder / name).write_bytes(data)
    what = "is not named by the manifest: left over, or put there by hand"
    again = " (run `shardclip index-shards` again: it mends this)"
    found = [(fault.file, fault.what) for fault in verify(str(folder), workers=1, console=console)]
    assert found == ([(name, what + again)] if is_stranger else [])


def test_the_fingerprint_is_of_pictures_captions_and_jsons(tmp_path: Path, console: Console, here: None) -> None:
    def fingerprint(name: str, samples: list[dict[str, Any]], **settings: Any) -> str:
        folder = write_tars(tmp_path / name, samples, **settings)
        manifest = index(folder, console)
        assert manifest.fingerprint == load_manifest(str(folder)).fingerprint == ShardSet.open(str(folder)).fingerprint
        return str(manifest.fingerprint)

    first = fingerprint("first", others())
    with_more = [{**sample, "cls": "7", "npy": b"whatever"} for sample in others()]
    assert fingerprint("renamed", [{**s, "__key__": f"k{n}"} for n, s in enumerate(others())]) == first
    assert fingerprint("more", with_more) == first
    changes: list[dict[str, Any]] = [
        {"txt": "another text"},
        {"json": {"caption": "x"}},
        {"jpg": picture(77, (40, 30))},
    ]
    changed = [fingerprint(f"changed{n}", [{**others()[0], **c}, *others()[1:]]) for n, c in enumerate(changes)]
    changed.append(fingerprint("order", others()[::-1]))
    changed.append(fingerprint("cut", others(), per_tar=5))
    assert len({first, *changed}) == 6


def test_a_tar_without_a_usable_sample_is_no_fault(folder: Path, console: Console, here: None) -> None:
    useless = write_tars(folder.with_name("useless"), [{"__key__": "a", "txt": "x"}])
    (useless / "00000.tar").rename(folder / "00007.tar")
    assert [entry.name for entry in index(folder, console).shards] == ["00000.tar", "00001.tar", "00002.tar"]
    assert verify(str(folder), workers=1, console=console) == []
    (useless.parent / "useless").rmdir()
    add_tar(folder, "00008.tar")
    assert [fault.file for fault in verify(str(folder), workers=1, console=console)] == ["00008.tar"]


def test_other_tools_index_files_are_left_alone(folder: Path, console: Console, here: None) -> None:
    (folder / "00000.idx").write_bytes(b"v1.2 4\njpg 512 800 a.jpg\n")
    (folder / "other.idx").write_bytes(b"theirs")
    manifest = index(folder, console)
    index(folder, console)
    assert (folder / "00000.idx").read_bytes().startswith(b"v1.2") and (folder / "other.idx").exists()
    assert manifest.shards[0].index_name != "00000.idx" == manifest.shards[0].name.replace("tar", "idx")
    assert verify(str(folder), workers=1, console=console) == []
