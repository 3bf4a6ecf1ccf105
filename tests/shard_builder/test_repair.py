"""A finished set that lost a shard gets the very same one back, or says what differs; it is never made worse."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
from holds import Hold
from photo_folders import folder_bytes, picture
from rich.console import Console

from core.config import dump_yaml
from core.errors import DamagedError, ManifestError
from core.shard_set import ShardSet
from core.storage import sha256_of
from shard_builder import whole
from shard_builder.build import build_shards
from shard_builder.config import BuildConfig
from shard_builder.verify import verify

ROOT = Path(__file__).resolve().parents[2]
MakeConfig = Callable[..., BuildConfig]
# Stands still when the repaired shard is on the disk, before it is published.
HELD = """
import sys
from pathlib import Path
from core.config import load_config
from holds import Hold
from shard_builder import repair
from shard_builder.build import build_shards
from shard_builder.config import BuildConfig
real = repair.publish
def held(*arguments):
    if arguments[1].endswith(sys.argv[2]):
        Hold(Path(sys.argv[3])).stand_still()
    return real(*arguments)
repair.publish = held
build_shards(load_config(BuildConfig, Path(sys.argv[1])))
"""


@pytest.fixture
def built(make_config: MakeConfig, console: Console) -> BuildConfig:
    config = make_config()
    build_shards(config, console)
    return config


def words(console: Console) -> str:
    """All that was said, in one line."""
    return " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]


def lose_tar(folder: Path) -> None:
    (folder / "train-00001.tar").unlink()


def lose_index(folder: Path) -> None:
    (folder / "train-00002.idx").unlink()


def lose_both(folder: Path) -> None:
    lose_tar(folder)
    (folder / "train-00001.idx").unlink()


def cut_tar(folder: Path) -> None:
    with open(folder / "train-00000.tar", "r+b") as file:
        file.truncate(700)


def flip_bit(folder: Path) -> None:
    data = bytearray((folder / "train-00003.tar").read_bytes())
    data[5000] ^= 1
    (folder / "train-00003.tar").write_bytes(data)


def flip_bit_of_index(folder: Path) -> None:
    data = bytearray((folder / "train-00003.idx").read_bytes())
    data[-1] ^= 1
    (folder / "train-00003.idx").write_bytes(data)


@pytest.mark.parametrize("damage", [lose_tar, lose_index, lose_both, cut_tar, flip_bit_of_index])
def test_a_lost_shard_comes_back_to_the_byte(
    built: BuildConfig, console: Console, damage: Callable[[Path], None]
) -> None:
    folder = Path(built.out)
    before = folder_bytes(folder)
    damage(folder)
    manifest = build_shards(built, console)
    assert folder_bytes(folder) == before and manifest.num_samples == 30
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "1 of 4 shards are missing or damaged" in said and "repaired" in said
    assert verify(built.out, console, workers=1) == []
    build_shards(built, console)
    assert "nothing to do" in console.file.getvalue()  # type: ignore[attr-defined]


def test_damage_in_a_tar_of_the_right_size_is_mended_as_verify_says(built: BuildConfig, console: Console) -> None:
    folder = Path(built.out)
    before = folder_bytes(folder)
    flip_bit(folder)
    assert verify(built.out, console, workers=1)
    assert f"`shardclip build` with the recipe of this set (out={built.out} check_bytes=true) writes it again" in words(
        console
    )
    build_shards(replace(built, check_bytes=True), console)
    assert "1 of 4 shards are missing or damaged" in words(console)
    assert folder_bytes(folder) == before
    build_shards(replace(built, check_bytes=True), console)
    assert "nothing to do (checked: every byte)" in words(console)


def test_a_glance_at_a_finished_set_reads_no_tar_and_says_so(
    built: BuildConfig, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    monkeypatch.setattr(whole, "sha256_of", lambda path: read.append(str(path)) or sha256_of(path))
    build_shards(built, console)
    assert sorted(read) == sorted(str(path) for path in Path(built.out).glob("*.idx"))
    assert "sizes and indexes; check_bytes=true" in words(console)


def test_a_remote_set_gets_its_shard_back(built: BuildConfig, console: Console) -> None:
    url = f"memory://bucket-{time.time_ns()}/set"
    memory, folder = fsspec.filesystem("memory"), url.removeprefix("memory:/")
    memory.put(built.out, folder, recursive=True)
    memory.rm(f"{folder}/train-00001.tar")
    build_shards(replace(built, out=url), console)
    assert memory.cat_file(f"{folder}/train-00001.tar") == (Path(built.out) / "train-00001.tar").read_bytes()
    build_shards(replace(built, out=url), console)
    assert "nothing to do" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_shard_that_comes_out_different_is_not_put_back(
    built: BuildConfig, console: Console, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(built.out)
    lose_tar(folder)
    left = folder_bytes(folder)
    for image in sorted(photos.parent.glob("*.jpg")):  # same sizes, or it would be another recipe
        data = bytearray(image.read_bytes())
        data[-40] ^= 0x55
        image.write_bytes(data)
    with pytest.raises(DamagedError, match=r"train-00001.tar: written again .* not what it was \(image of \d samples"):
        build_shards(built, console)
    assert folder_bytes(folder) == left, "neither a shard nor litter"


def test_a_shard_that_comes_out_different_keeps_no_other_from_coming_back(
    built: BuildConfig, console: Console, photos: Path
) -> None:
    folder = Path(built.out)
    before = folder_bytes(folder)
    image = photos.parent / ShardSet.open(built.out).info(0)["image_id"]
    data = bytearray(image.read_bytes())
    data[-40] ^= 0x55
    for name in before:
        if name.endswith(".tar"):
            (folder / name).unlink()
    image.write_bytes(data)
    with pytest.raises(DamagedError, match=r"train-00000.tar: .* not what it was \(image of 1 samples\)\. What"):
        build_shards(built, console)
    del before["train-00000.tar"]
    assert folder_bytes(folder) == before


def test_a_file_that_the_disk_does_not_give_back_is_written_again(
    built: BuildConfig, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, bad = Path(built.out), Path(built.out) / "train-00001.idx"
    before, bad_inode = folder_bytes(folder), bad.stat().st_ino

    def read(path: str | Path) -> str:
        if Path(path) == bad and bad.stat().st_ino == bad_inode:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return sha256_of(path)

    monkeypatch.setattr(whole, "sha256_of", read)
    build_shards(built, console)
    assert "1 of 4 shards are missing or damaged" in console.file.getvalue()  # type: ignore[attr-defined]
    assert bad.stat().st_ino != bad_inode and folder_bytes(folder) == before


def test_sources_that_changed_are_another_recipe(built: BuildConfig, console: Console, photos: Path) -> None:
    lose_tar(Path(built.out))
    (photos.parent / "000.jpg").write_bytes(picture(5, size=(90, 70)))
    with pytest.raises(ManifestError, match="of other inputs or settings"):
        build_shards(built, console)


def test_whoever_opens_a_set_that_lost_a_shard_is_told_the_command(built: BuildConfig) -> None:
    lose_tar(Path(built.out))
    with pytest.raises(DamagedError, match=rf"is missing. `shardclip build` .*out={built.out}.* from the sources"):
        ShardSet.open(built.out)


@pytest.mark.parametrize("file", ["train-00001.tar", "train-00001.idx"])
def test_a_repair_that_is_killed_leaves_the_set_no_worse_and_goes_on(
    built: BuildConfig, console: Console, tmp_path: Path, file: str
) -> None:
    folder = Path(built.out)
    before = folder_bytes(folder)
    lose_both(folder)
    recipe, hold = tmp_path / "recipe.yaml", Hold(tmp_path / "held")
    recipe.write_text(dump_yaml(built))
    command = [sys.executable, "-c", HELD, str(recipe), file, str(hold.file)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        hold.wait(lambda: process.poll() is None)
        process.kill()
    whole = {name: data for name, data in folder_bytes(folder).items() if name in before}
    assert whole.items() <= before.items(), "a file of the sealed set is half written"
    build_shards(built, console)
    assert folder_bytes(folder) == before
