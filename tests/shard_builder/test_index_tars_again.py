"""Indexing a folder again: the old set or the new one is readable at any time, and nothing is written for nothing."""

from __future__ import annotations

import hashlib
import io
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign_tars import add_tar, others, write_tars
from photo_folders import folder_bytes
from rich.console import Console
from shard_sets import make_shard_set
from signed_files import body_of, sign_manifest

from core.errors import DamagedError, ManifestError
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


def everything(folder: Path) -> tuple[str, list[tuple[list[str], bytes, int]]]:
    """The fingerprint, and captions, picture and image number of every sample; raises where a reader would."""
    shard_set = ShardSet.open(str(folder))
    numbers = shard_set.image_ids(np.arange(len(shard_set))).tolist()
    return shard_set.fingerprint, [
        (shard_set.captions(n), bytes(shard_set.member(n, IMAGE)), number) for n, number in enumerate(numbers)
    ]


def rename(folder: Path, name: str = "moved") -> Path:
    """Another name for the folder is another source: the samples stay, their image numbers change, so every index."""
    return folder.rename(folder.with_name(name))


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
    (folder / "00001.emb").write_bytes((folder / "00001.emb").read_bytes()[:-1])
    mended = index(folder, console)
    assert mended.shards[1].embeddings is None and mended.shards[0].embeddings
    assert verify(str(folder), workers=1, console=console) == []
