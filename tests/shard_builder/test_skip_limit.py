"""The limit on inputs that are left out: it holds however often the same build is started, until they are mended."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from class_folders import write_folders
from fake_encoder import FakeEncoder
from photo_folders import folder_bytes, quick_recipe
from rich.console import Console

from core.config import Choice
from core.errors import DataError, ManifestError
from core.manifest import load_manifest
from core.text_encoders import TEXT_ENCODERS
from shard_builder.build import build_shards
from shard_builder.config import BuildConfig

REFUSED = r"of 12 inputs cannot be used .*, and start again: it goes on"


@pytest.fixture(params=[12, 3], ids=["one shard", "four shards"])
def config(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BuildConfig:
    """Twelve pictures in three classes, of which no more than one may be left out."""
    monkeypatch.setitem(TEXT_ENCODERS, "fake", FakeEncoder)
    source = Choice("image_folder", {"folder": str(write_folders(tmp_path / "pets"))})
    settings = {"source": source, "samples_per_shard": request.param, "max_skipped": 0.1}
    return quick_recipe(Path(), tmp_path / "out", tmp_path / "cache", **settings)


def broken(tmp_path: Path, keep_size: bool) -> dict[Path, bytes]:
    """Break six pictures; returns what they held."""
    were = {path: path.read_bytes() for path in sorted((tmp_path / "pets").rglob("*.jpg"))[::2]}
    for path, data in were.items():
        path.write_bytes(data[:300] + (bytes(len(data) - 300) if keep_size else b""))
    return were


def refuse(config: BuildConfig, console: Console) -> None:
    with pytest.raises(DataError, match=REFUSED):
        build_shards(config, console)
    with pytest.raises(ManifestError, match="no shard set is there"):
        load_manifest(config.out)


def test_the_same_command_is_refused_as_often_as_it_is_given(
    config: BuildConfig, console: Console, tmp_path: Path
) -> None:
    broken(tmp_path, keep_size=False)
    for _ in range(6):
        refuse(config, console)
    manifest = build_shards(replace(config, max_skipped=0.5), console)
    assert (manifest.num_samples, sum(manifest.skipped.values())) == (6, 6)
    build_shards(whole := replace(config, max_skipped=0.5, out=config.out + "2"), console)
    assert folder_bytes(config.out) == folder_bytes(whole.out)
    assert "killed" not in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("keep_size", [True, False])
def test_mended_pictures_go_into_the_build_that_was_refused(
    config: BuildConfig, console: Console, tmp_path: Path, keep_size: bool
) -> None:
    were = broken(tmp_path, keep_size)
    refuse(config, console)
    for path, data in were.items():
        path.write_bytes(data)
    assert build_shards(config, console).num_samples == 12
    build_shards(whole := replace(config, out=config.out + "2"), console)
    assert folder_bytes(config.out) == folder_bytes(whole.out)


def test_only_the_shards_of_changed_pictures_are_written_again(
    config: BuildConfig, console: Console, tmp_path: Path
) -> None:
    were = broken(tmp_path, keep_size=False)
    for path in list(were)[1:]:
        path.write_bytes(were.pop(path))
    strict = replace(config, max_skipped=0.0, samples_per_shard=2)
    with pytest.raises(DataError, match="1 of 12 inputs"):
        build_shards(strict, console)
    finished = len(list(Path(config.out).glob("*.tar")))
    for path, data in were.items():
        path.write_bytes(data)
    build_shards(strict, console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert ("Going on with an unfinished build" in said) == (finished > 1)
    build_shards(whole := replace(strict, out=config.out + "2"), console)
    assert folder_bytes(config.out) == folder_bytes(whole.out)


def test_pictures_that_come_or_go_are_another_build(config: BuildConfig, console: Console, tmp_path: Path) -> None:
    were = broken(tmp_path, keep_size=False)
    refuse(config, console)
    next(iter(were)).unlink()
    with pytest.raises(ManifestError, match="holds an unfinished build of other inputs .*inputs.images: 12 -> 11"):
        build_shards(config, console)
