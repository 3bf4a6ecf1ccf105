"""verify: whatever is wrong with a set is found, all of it, by name."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from photo_folders import picture
from rich.console import Console

from core.manifest import index_name, load_manifest, save_manifest
from core.shard_index import NPY, ShardIndex, checksum, encode_index, read_index, scan_tar
from core.storage import sha256_of
from shard_builder.build import build_shards
from shard_builder.config import BuildConfig
from shard_builder.verify import Fault, fault_table, verify

MakeConfig = Callable[..., BuildConfig]


@pytest.fixture
def folder(make_config: MakeConfig, console: Console) -> Path:
    """A sound set of 30 samples in 4 shards."""
    config = make_config()
    build_shards(config, console)
    return Path(config.out)


def check(folder: Path) -> list[Fault]:
    return verify(str(folder), workers=1, console=Console(file=io.StringIO(), width=150))


def test_a_sound_set_has_no_fault(folder: Path, console: Console) -> None:
    assert verify(str(folder), workers=2, console=console) == []
    assert "sound" in console.file.getvalue()  # type: ignore[attr-defined]


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x04
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    "name",
    ["manifest.json", "build.json", "rejected.jsonl", "contact_sheet.jpg", "train-00000.tar", "train-00003.idx"],
)
def test_one_flipped_bit_in_any_file_is_found_and_the_file_named(folder: Path, name: str) -> None:
    path = folder / name
    for position in np.random.default_rng(5).integers(0, max(1, path.stat().st_size), 4).tolist():
        if not path.stat().st_size:
            path.write_bytes(b" ")  # nothing was rejected: a byte too many is all that can be wrong
        else:
            flip(path, position)
        assert name in {fault.file for fault in check(folder)}, position
        path.write_bytes(b"") if path.read_bytes() == b" " else flip(path, position)
    assert check(folder) == []


def test_every_fault_is_found_not_the_first(folder: Path, console: Console) -> None:
    flip(folder / "train-00000.tar", 700)
    (folder / "train-00001.tar").unlink()
    tar = folder / "train-00002.tar"
    tar.write_bytes(tar.read_bytes()[:-10240])
    flip(folder / "train-00003.idx", 400)
    (folder / "train-00009.tar").write_bytes(b"")
    (folder / ".partial-x").write_bytes(b"")
    (folder / ".build").mkdir()
    faults = verify(str(folder), workers=1, console=console)
    assert {"train-00000.tar", "train-00001.tar", "train-00002.tar", "train-00003.idx", "train-00009.tar"} <= {
        fault.file for fault in faults
    }
    assert {".partial-x", ".build"} <= {fault.file for fault in faults}
    assert faults == sorted(faults)
    assert f"{len(faults)} faults" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_damaged_sample_is_named_by_its_key(folder: Path) -> None:
    sample = scan_tar(folder / "train-00001.tar")[3]
    flip(folder / "train-00001.tar", sample.members["npy"][0] + 140)
    assert Fault("train-00001.tar", sample.key, "not what was written, by its checksum: npy") in check(folder)


def rewrite(folder: Path, shard: str, change: Callable[[str, bytes], bytes]) -> None:
    """Change members of a shard and make tar, index and manifest consistent again: only the contents are wrong."""
    members = {}
    with tarfile.open(folder / shard) as tar:
        for member in tar:
            members[member.name] = change(member.name, tar.extractfile(member).read())  # type: ignore[union-attr]
    with tarfile.open(folder / shard, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    index = read_index(folder / index_name(shard))
    records = index.records.copy()
    for row, sample in enumerate(scan_tar(folder / shard)):
        for column, (extension, (offset, length)) in enumerate(sample.members.items()):
            records[row, column] = (offset, checksum(members[f"{sample.key}.{extension}"]), length)
    (folder / index_name(shard)).write_bytes(encode_index(ShardIndex(index.members, records, index.image_ids)))
    update_manifest(folder, shard)


def update_manifest(folder: Path, shard: str) -> None:
    manifest = load_manifest(str(folder))
    sums = {"sha256": sha256_of(folder / shard), "index_sha256": sha256_of(folder / index_name(shard))}
    size = (folder / shard).stat().st_size
    entries = tuple(replace(e, bytes=size, **sums) if e.name == shard else e for e in manifest.shards)
    save_manifest(replace(manifest, shards=entries), str(folder))


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


CONTENTS: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "wrong_size": ("jpg", lambda data: picture(1, (40, 32)), "the image cannot be decoded"),
    "no_image": ("jpg", lambda data: b"nothing", "the image cannot be decoded"),
    "not_unit": ("npy", lambda data: npy(np.load(io.BytesIO(data)) * 2), "an embedding is not of unit length"),
    "not_finite": ("npy", lambda data: npy(np.load(io.BytesIO(data)) * np.nan), "an embedding is not finite"),
    "one_missing": ("npy", lambda data: npy(np.load(io.BytesIO(data))[1:]), "embeddings of shape"),
    "other_text": ("txt", lambda data: data + b"!", "the txt is not the first caption"),
    "other_id": ("json", lambda data: data.replace(b'"image_id": "', b'"image_id": "x'), "another image's group"),
    "broken_json": ("json", lambda data: data[:-1], "no captions can be read"),
}


@pytest.mark.parametrize("kind", CONTENTS)
def test_wrong_contents_are_found_behind_right_checksums(folder: Path, kind: str) -> None:
    extension, change, expected = CONTENTS[kind]
    key = scan_tar(folder / "train-00002.tar")[1].key
    name = f"{key}.{extension}"
    rewrite(folder, "train-00002.tar", lambda member, data: data)
    assert check(folder) == []
    rewrite(folder, "train-00002.tar", lambda member, data: change(data) if member == name else data)
    faults = check(folder)
    assert [(fault.sample, expected in fault.what) for fault in faults if fault.sample] == [(key, True)], faults


def test_an_index_that_points_elsewhere_is_found(folder: Path) -> None:
    path = folder / "train-00000.idx"
    index = read_index(path)
    records = index.records.copy()
    column = index.column(NPY)
    records[[0, 1], column] = records[[1, 0], column]  # right checksums, the neighbour's embeddings
    path.write_bytes(encode_index(ShardIndex(index.members, records, index.image_ids)))
    update_manifest(folder, "train-00000.tar")
    keys = [sample.key for sample in scan_tar(folder / "train-00000.tar")[:2]]
    assert {(f.sample, f.what) for f in check(folder) if "lies elsewhere" in f.what} == {
        (key, "the npy lies elsewhere than the index says") for key in keys
    }


def test_a_fingerprint_of_other_samples_is_found(folder: Path) -> None:
    manifest = load_manifest(str(folder))
    save_manifest(replace(manifest, fingerprint=""), str(folder))  # of before manifests had one
    assert check(folder) == []
    save_manifest(replace(manifest, shards=manifest.shards[::-1]), str(folder))
    expected = Fault("manifest.json", "", "its fingerprint is not that of the samples that the indexes name")
    assert [fault for fault in check(folder) if not fault.file.startswith("columns/")] == [expected]
    save_manifest(replace(manifest, fingerprint="0" * 64), str(folder))
    assert [fault for fault in check(folder) if not fault.file.startswith("columns/")] == [expected]
    flip(folder / "train-00003.idx", 400)
    found = {fault.file for fault in check(folder) if not fault.file.startswith("columns/")}
    assert found == {"train-00003.idx"}  # what it says of its samples means nothing


STRANGERS = (
    "train-00009.tar",
    "train-00000.1a2b3c4d.idx",
    "x.emb",
    ".partial-train-00000.tar.x",
    "notes.txt",
    "README",
)


@pytest.mark.parametrize("name", STRANGERS)
def test_a_stranger_among_a_built_sets_files_is_named(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"")
    assert check(folder) == [Fault(name, "", "is not named by the manifest: left over, or put there by hand")]


def test_what_belongs_to_a_built_set_is_no_stranger(folder: Path) -> None:
    assert (folder / "columns/labels/column.json").exists()  # a column is checked for itself
    files = sorted(path.name for path in folder.iterdir() if path.is_file())
    shards = [f"train-{n:05d}.{end}" for n in range(4) for end in ("idx", "tar")]
    assert files == sorted(["build.json", "contact_sheet.jpg", "manifest.json", "rejected.jsonl", *shards])
    assert [fault for fault in check(folder) if "not named by the manifest" in fault.what] == []


def test_what_a_killed_build_left_is_named_with_its_remedy(folder: Path) -> None:
    (folder / ".build").mkdir()
    assert check(folder) == [
        Fault(".build", "", "left over from an unfinished build: run the build again, it only tidies up")
    ]


def test_a_shard_standing_twice_repeats_keys_and_image_ids(folder: Path) -> None:
    manifest = load_manifest(str(folder))
    first, second = manifest.shards[0], manifest.shards[1]
    (folder / second.name).write_bytes((folder / first.name).read_bytes())
    index = read_index(folder / index_name(first.name))
    members = tuple(replace(member, file=second.name) for member in index.members)
    (folder / index_name(second.name)).write_bytes(encode_index(ShardIndex(members, index.records, index.image_ids)))
    update_manifest(folder, second.name)
    whats = [fault.what for fault in check(folder)]
    assert sum(what.startswith("key 000000") for what in whats) == 8
    assert sum(what.startswith("image id jsonl") for what in whats) == 8


def test_without_a_manifest_that_is_the_fault(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    assert [(f.file, "no manifest.json" in f.what) for f in check(folder)] == [("manifest.json", True)]


def test_a_missing_listing_is_a_fault(folder: Path) -> None:
    (folder / "rejected.jsonl").write_text(json.dumps({"reason": "truncated"}) + "\n")
    assert any("the manifest says nothing" in fault.what for fault in check(folder))
    (folder / "rejected.jsonl").unlink()
    assert {f.file for f in check(folder)} == {"rejected.jsonl"}


def test_the_table_stays_readable() -> None:
    faults = [Fault("train-00000.tar", f"{n:09d}", "[bold]not markup[/]") for n in range(50)]
    console = Console(file=io.StringIO(), width=120)
    console.print(fault_table("set", faults))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "[bold]not markup[/]" in text
    assert "... and 30 more" in text
    assert "50 faults" in text
