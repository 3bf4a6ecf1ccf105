"""Sets of class folders that were built when HEIC was no image there: still known, gone on with, and repaired."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from class_folders import write_folders
from fake_encoder import FakeEncoder
from interrupted_builds import interrupted_after_a_shard
from photo_folders import folder_bytes, quick_recipe
from rich.console import Console

from core.config import Choice
from core.errors import ManifestError
from core.manifest import load_manifest
from core.text_encoders import TEXT_ENCODERS
from shard_builder.build import build_shards
from shard_builder.config import BuildConfig
from shard_builder.readers import image_folder
from shard_builder.verify import verify

HEIC = b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(64)  # its header alone: read by nobody


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BuildConfig:
    """Of twelve JPEGs in three classes, and two HEIC files among them."""
    monkeypatch.setitem(TEXT_ENCODERS, "fake", FakeEncoder)
    folder = write_folders(tmp_path / "pets")
    for name in ("cat/a.heic", "goldfish/0.HEIF"):
        (folder / name).write_bytes(HEIC)
    return config_of(tmp_path, "out")


def config_of(tmp_path: Path, out: str, **changes: Any) -> BuildConfig:
    source = Choice("image_folder", {"folder": str(tmp_path / "pets")})
    settings = {"source": source, "samples_per_shard": 5, "max_skipped": 0.5, **changes}
    return quick_recipe(Path(), tmp_path / out, tmp_path / "cache", **settings)


def build_as_before(config: BuildConfig, console: Console) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_folder, "IMAGE_SUFFIXES", image_folder.IMAGE_SUFFIXES - {".heic", ".heif"})
        build_shards(config, console)


def test_a_set_of_then_is_known_and_gets_a_lost_shard_back(config: BuildConfig, console: Console) -> None:
    build_as_before(config, console)
    before = folder_bytes(config.out)
    assert load_manifest(config.out).skipped == {"not_an_image": 2}
    build_shards(config, console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "already built" in said and "2 HEIC pictures stay left out" in said
    (Path(config.out) / "train-00001.tar").unlink()
    build_shards(config, console)
    assert folder_bytes(config.out) == before
    assert verify(config.out, workers=1, console=console) == []


def test_an_unfinished_build_of_then_goes_on(config: BuildConfig, console: Console, tmp_path: Path) -> None:
    with interrupted_after_a_shard():
        build_as_before(config, console)
    build_shards(config, console)
    assert "1 of 3 shards are finished" in console.file.getvalue()  # type: ignore[attr-defined]
    whole = config_of(tmp_path, "whole")
    build_as_before(whole, console)
    assert folder_bytes(config.out) == folder_bytes(whole.out)


def test_a_new_set_lists_them_as_pictures_and_other_changes_are_refused(
    config: BuildConfig, console: Console, tmp_path: Path
) -> None:
    build_as_before(config, console)
    new = config_of(tmp_path, "new")
    build_shards(new, console)
    assert "stay left out" not in console.file.getvalue()  # type: ignore[attr-defined]
    images = json.loads((Path(new.out) / "build.json").read_text())["recipe"]["inputs"]["images"]
    assert images == 14
    build_shards(new, console)
    assert "stay left out" not in console.file.getvalue()  # type: ignore[attr-defined]
    with pytest.raises(ManifestError, match="seed"):
        build_shards(config_of(tmp_path, "out", seed=5), console)
    (tmp_path / "pets/dog/0.jpg").unlink()
    with pytest.raises(ManifestError, match="other inputs"):
        build_shards(config, console)
