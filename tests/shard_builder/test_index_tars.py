"""Tars of others become shard sets: nothing in them is touched, and what cannot be used is listed."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign_tars import others, write_tars
from in_this_process import InThisProcess
from photo_folders import folder_bytes, picture
from rich.console import Console
from shard_sets import make_shard_set
from signed_files import body_of, sign_manifest

from core.errors import DamagedError, DataError, ManifestError, StorageError
from core.image import decode_into
from core.manifest import SidecarEntry, TextEncoderSpec, load_manifest, save_manifest
from core.shard_index import IMAGE, NPY, RECORD, Member, ShardIndex, checksum, encode_index, read_index
from core.shard_set import ShardSet
from shard_builder import index_tars
from shard_builder.index_tars import index_shards
from shard_builder.verify import verify
from shard_builder.writer import npy_bytes


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


def everything(folder: Path) -> tuple[str, list[tuple[list[str], bytes, int]]]:
    """The fingerprint, and captions, picture and image number of every sample; raises where a reader would."""
    shard_set = ShardSet.open(str(folder))
    numbers = shard_set.image_ids(np.arange(len(shard_set))).tolist()
    return shard_set.fingerprint, [
        (shard_set.captions(n), bytes(shard_set.member(n, IMAGE)), number) for n, number in enumerate(numbers)
    ]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are functions of this process."""
    monkeypatch.setattr(index_tars, "ProcessesEngine", InThisProcess)
    monkeypatch.setattr("shard_builder.verify.ProcessesEngine", InThisProcess)


def rename(folder: Path, name: str = "moved") -> Path:
    """Another name for the folder is another source: the samples stay, their image numbers change, so every index."""
    return folder.rename(folder.with_name(name))


def add_tar(folder: Path, name: str = "00003.tar") -> None:
    extra = write_tars(folder.with_name("extra"), [{"__key__": "new", "jpg": picture(99, (30, 30)), "txt": "new"}])
    (extra / "00000.tar").rename(folder / name)
    extra.rmdir()


@pytest.mark.parametrize("moved", [False, True])
def test_a_damaged_tar_leaves_a_good_set_as_it_was(folder: Path, console: Console, moved: bool) -> None:
    index(folder, console)
    folder = rename(folder) if moved else folder
    add_tar(folder)
    before, good = everything(folder), folder_bytes(folder)
    tar = folder / "00003.tar"
    tar.write_bytes(tar.read_bytes()[:2000])
    with pytest.raises(DamagedError, match=r"00003\.tar"):
        index(folder, console)
    assert everything(folder) == before
    assert {**folder_bytes(folder), "00003.tar": good["00003.tar"]} == good
    tar.unlink()
    assert verify(str(folder), workers=1, console=console) == []


class Killed(BaseException):
    """A kill at a chosen moment."""


def kill_at(moment: int, patch: pytest.MonkeyPatch) -> list[str]:
    """Kill before or after one of the steps that change the folder; gives the steps as they are done."""
    steps: list[str] = []

    def watched(name: str, step: Any) -> Any:
        def run(*given: Any) -> Any:
            if len(steps) == moment:
                raise Killed
            done = step(*given)
            steps.append(name)
            if len(steps) == moment:
                raise Killed
            return done

        return run

    for name in ("publish_bytes", "save_manifest", "remove"):
        patch.setattr(index_tars, name, watched(name, getattr(index_tars, name)))
    return steps


def test_killed_at_any_step_it_leaves_the_old_set_or_the_new_one(folder: Path, console: Console, here: None) -> None:
    index(folder, console)
    prepared = rename(folder)
    add_tar(prepared)
    old = everything(prepared)
    undisturbed = shutil.copytree(prepared, prepared.parent / "undisturbed" / "moved")
    with pytest.MonkeyPatch.context() as patch:
        steps = kill_at(-1, patch)
        index(undisturbed, console, split="val")
    new = everything(undisturbed)
    assert steps == ["publish_bytes"] * 4 + ["publish_bytes"] + ["save_manifest"] + ["remove"] * 3
    assert verify(str(undisturbed), workers=1, console=console) == []
    for moment in range(len(steps) + 1):
        folder = shutil.copytree(prepared, prepared.parent / f"killed-{moment}" / "moved")
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            kill_at(moment, patch)
            index(folder, console, split="val")
        assert everything(folder) == (new if moment >= steps.index("save_manifest") + 1 else old), moment
        for fault in verify(str(folder), workers=1, console=console):
            assert "run `shardclip index-shards` again" in fault.what, fault
        index(folder, console, split="val")
        assert folder_bytes(folder) == folder_bytes(undisturbed), moment


def test_an_unchanged_folder_is_left_alone(folder: Path, here: None) -> None:
    console = Console(file=io.StringIO(), width=140)
    first = index(folder, console)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert "already indexed" not in console.file.getvalue()  # type: ignore[attr-defined]
    assert index(folder, console) == first
    assert "already indexed" in console.file.getvalue()  # type: ignore[attr-defined]
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_other_settings_change_the_manifest_alone(folder: Path, console: Console, here: None) -> None:
    index(folder, console)
    before = folder_bytes(folder)
    manifest = index_shards(str(folder), size=48, fit="pad", console=console)
    assert (manifest.image.size, manifest.image.fit) == (48, "pad")
    assert {name for name, data in folder_bytes(folder).items() if data != before.get(name)} == {
        "build.json",
        "manifest.json",
    }
    assert verify(str(folder), workers=1, console=console) == []


def test_an_index_of_other_bytes_has_another_name_and_keeps_it(folder: Path, console: Console, here: None) -> None:
    first = index(folder, console)
    folder = rename(folder)
    second = index(folder, console)
    assert [entry.index_name for entry in first.shards] == ["00000.idx", "00001.idx", "00002.idx"]
    for entry in second.shards:
        stem = entry.name.removesuffix(".tar")
        assert entry.index_name == f"{stem}.{entry.index_sha256[:8]}.idx"
    assert sorted(p.name for p in folder.glob("*.idx")) == [entry.index_name for entry in second.shards]
    assert second.fingerprint == first.fingerprint  # the samples are the same
    assert index(folder, console) == second
    rename(folder, "laion")
    assert index(folder.with_name("laion"), console).shards == first.shards


@pytest.mark.parametrize("harm", ["flip", "gone"])
def test_a_damaged_index_is_mended_under_its_name(folder: Path, console: Console, here: None, harm: str) -> None:
    index(folder, console)
    before = folder_bytes(folder)
    path = folder / "00001.idx"
    if harm == "flip":
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    else:
        path.unlink()
    index(folder, console)
    assert folder_bytes(folder) == before


def test_other_tools_index_files_are_left_alone(folder: Path, console: Console, here: None) -> None:
    (folder / "00000.idx").write_bytes(b"v1.2 4\njpg 512 800 a.jpg\n")
    (folder / "other.idx").write_bytes(b"theirs")
    manifest = index(folder, console)
    index(folder, console)
    assert (folder / "00000.idx").read_bytes().startswith(b"v1.2") and (folder / "other.idx").exists()
    assert manifest.shards[0].index_name != "00000.idx" == manifest.shards[0].name.replace("tar", "idx")
    assert verify(str(folder), workers=1, console=console) == []


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


def test_left_overs_are_found_and_the_next_run_removes_them(folder: Path, console: Console, here: None) -> None:
    index(folder, console)
    before = folder_bytes(folder)
    (folder / "00000.12345678.idx").write_bytes((folder / "00000.idx").read_bytes())
    (folder / "00000.emb").write_bytes(b"\x93NUMPY rest")
    (folder / ".partial-00000.idx.x").write_bytes(b"half")
    (folder / "rejected.jsonl").write_text('{"reason": "no_caption"}\n')
    faults = {fault.file: fault.what for fault in verify(str(folder), workers=1, console=console)}
    assert set(faults) == {"00000.12345678.idx", "00000.emb", ".partial-00000.idx.x", "rejected.jsonl"}
    assert all("run `shardclip index-shards` again" in what for what in faults.values())
    index(folder, console)
    assert folder_bytes(folder) == before


def test_a_built_set_is_not_indexed_over(tmp_path: Path, console: Console) -> None:
    url = make_shard_set(tmp_path / "built", 12)
    before = folder_bytes(url)
    with pytest.raises(ManifestError, match="was built by shardclip and has its indexes"):
        index_shards(url, console=console)
    (tmp_path / "built/manifest.json").write_text("{}")
    with pytest.raises(ManifestError, match=r"manifest.json: .* To index the tars anew, delete that file\."):
        index_shards(url, console=console)
    assert {**folder_bytes(url), "manifest.json": before["manifest.json"]} == before


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


def test_a_set_indexed_before_fingerprints_reads_and_gets_one(folder: Path, console: Console, here: None) -> None:
    manifest = index(folder, console)
    body = body_of(folder / "manifest.json", "manifest_sha256")
    body["fingerprint"] = body.pop("build_fingerprint")
    for entry in body["shards"]:
        del entry["index"]
    (folder / "manifest.json").write_bytes(sign_manifest(body))
    assert load_manifest(str(folder)) == replace(manifest, fingerprint="")
    assert everything(folder)[0] == manifest.fingerprint
    assert verify(str(folder), workers=1, console=console) == []
    assert index(folder, console) == load_manifest(str(folder)) == manifest


def test_a_tar_without_a_usable_sample_is_no_fault(folder: Path, console: Console, here: None) -> None:
    useless = write_tars(folder.with_name("useless"), [{"__key__": "a", "txt": "x"}])
    (useless / "00000.tar").rename(folder / "00007.tar")
    assert [entry.name for entry in index(folder, console).shards] == ["00000.tar", "00001.tar", "00002.tar"]
    assert verify(str(folder), workers=1, console=console) == []
    (useless.parent / "useless").rmdir()
    add_tar(folder, "00008.tar")
    assert [fault.file for fault in verify(str(folder), workers=1, console=console)] == ["00008.tar"]


def embed_by_hand(folder: Path) -> None:
    """Sidecars with embeddings, as sets of others' tars had them before there were columns."""
    manifest = load_manifest(str(folder))
    entries = []
    for entry in manifest.shards:
        index = read_index(folder / entry.index_name)
        blobs = [npy_bytes(np.eye(1, 8)) for _ in range(len(index))]
        offsets = np.cumsum([0, *map(len, blobs)])
        column = np.array([(o, checksum(b), len(b)) for o, b in zip(offsets, blobs)], dtype=RECORD)
        name = entry.name.replace(".tar", ".emb")
        (folder / name).write_bytes(b"".join(blobs))
        data = encode_index(
            ShardIndex((*index.members, Member(NPY, name)), np.column_stack([index.records, column]), index.image_ids)
        )
        (folder / entry.index_name).write_bytes(data)
        sidecar = SidecarEntry(name, int(offsets[-1]), hashlib.sha256(b"".join(blobs)).hexdigest())
        entries.append(replace(entry, index_sha256=hashlib.sha256(data).hexdigest(), embeddings=sidecar))
    encoder = TextEncoderSpec("fake", "0", 8, "0" * 64)
    save_manifest(replace(manifest, shards=tuple(entries), text_encoder=encoder), str(folder))


def test_embeddings_in_sidecars_stay_until_a_tar_changes(folder: Path, console: Console, here: None) -> None:
    samples = [{**sample, "json": {"caption": f"text {n}"}} for n, sample in enumerate(others())]
    shutil.rmtree(folder)
    write_tars(folder, samples)
    fingerprint = index(folder, console).fingerprint
    embed_by_hand(folder)
    kept = index(folder, console)
    assert kept.fingerprint == fingerprint and kept.text_encoder and all(entry.embeddings for entry in kept.shards)
    assert ShardSet.open(str(folder)).embeddings(9).shape == (1, 8)
    assert verify(str(folder), workers=1, console=console) == []
    add_tar(folder)
    assert index(folder, console).text_encoder is None
    assert verify(str(folder), workers=1, console=console) == []
    (folder / "00001.emb").unlink()
    mended = index(folder, console)
    assert mended.shards[1].embeddings is None and mended.shards[0].embeddings
    assert verify(str(folder), workers=1, console=console) == []
