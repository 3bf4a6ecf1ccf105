"""The estimate before a build: counts are exact, bytes are near, times follow from what was measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from photo_folders import write_photos
from rich.console import Console

from core.config import Choice
from core.errors import DataError
from shard_builder.build import build_shards
from shard_builder.config import BuildConfig, ImageConfig
from shard_builder.estimate import Estimate, estimate_build

MakeConfig = Callable[..., BuildConfig]


def test_counts_are_exact_and_bytes_near(make_config: MakeConfig, console: Console, photos: Path) -> None:
    (photos.parent / "004.jpg").unlink()
    config = make_config(image=ImageConfig(size=64), max_skipped=0.1)
    expected = estimate_build(config, console=console)
    assert (expected.num_images, expected.skipped) == (29, {"missing_image": 1})
    assert not Path(config.out).exists()
    manifest = build_shards(config, console)
    assert expected.num_captions == manifest.num_captions
    stored = sum(path.stat().st_size for path in Path(config.out).iterdir() if path.suffix in (".tar", ".idx"))
    assert expected.set_bytes == pytest.approx(stored, rel=0.15)


def test_captions_in_the_cache_need_no_time(make_config: MakeConfig, console: Console, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "new", 3)
    config = make_config(source=Choice("jsonl", {"file": str(photos)}), cache_dir=tmp_path / "empty")
    assert estimate_build(config, console=console).captions_to_encode > 0
    build_shards(config, console)
    assert estimate_build(config, console=console).captions_to_encode == 0
    assert "all are in the cache" in console.file.getvalue()  # type: ignore[attr-defined]


def test_undecodable_images_are_foretold(make_config: MakeConfig, console: Console, photos: Path) -> None:
    for number in range(0, 30, 3):
        (photos.parent / f"{number:03d}.jpg").write_bytes(b"broken")
    assert estimate_build(make_config(), console=console).failed_share == pytest.approx(1 / 3)
    for image in photos.parent.glob("*.jpg"):
        image.write_bytes(b"broken")
    with pytest.raises(DataError, match=r"none of 30 sampled images can be used"):
        estimate_build(make_config(), console=console)
    for image in photos.parent.glob("*.jpg"):
        image.unlink()
    with pytest.raises(DataError, match=r"has no usable image .*missing_image"):
        estimate_build(make_config(), console=console)


def test_times_and_workers_follow_from_the_rates() -> None:
    expected = Estimate(1000, 5000, {}, 0.0, 10, 100.0, 500, 50.0, 1000.0)
    assert expected.build_s(1) == pytest.approx(500 / 50 + 1000 / 100)
    assert expected.build_s(5) == pytest.approx(500 / 50 + 1000 / 100 / 5)
    assert replace(expected, captions_to_encode=0, captions_per_s=0.0).build_s(2) == pytest.approx(5)
    assert expected.loader_workers(2500) == 3
    assert expected.loader_workers(1) == 1
