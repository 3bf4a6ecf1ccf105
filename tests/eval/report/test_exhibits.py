"""Pictures for people come from any of several sets, each by its own codec."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from shard_sets import make_shard_set

from core.image import encode_jpeg
from core.shard_set import ShardSet
from eval.report.exhibits import Shelf


def test_thumbnails_of_sets_of_two_codecs(tmp_path: Path) -> None:
    urls = [make_shard_set(tmp_path / codec, 4, codec=codec, seed=3) for codec in ("jpeg", "raw")]
    shelf = Shelf(ShardSet.open(urls), tmp_path / "pictures", "sample")
    first, second = (np.asarray(Image.open(tmp_path / "pictures" / shelf.picture(n)), float) for n in (1, 5))
    assert np.abs(first - second).mean() < 12  # the same picture, stored twice


def test_pictures_of_another_set_are_not_taken_for_this_ones(tmp_path: Path) -> None:
    """Though both are evaluated into one folder."""
    shelves = [
        Shelf(ShardSet.open(make_shard_set(tmp_path / str(seed), 4, seed=seed)), tmp_path / "pictures", "sample")
        for seed in (3, 4)
    ]
    first, second = ((tmp_path / "pictures" / shelf.picture(1)).read_bytes() for shelf in shelves)
    assert first != second


def test_a_sheet_holds_the_thumbnails_asked_for_in_rows(tmp_path: Path) -> None:
    samples = [7, 2, 9, 0, 4]
    shelf = Shelf(ShardSet.open(make_shard_set(tmp_path / "set", 10)), tmp_path / "pictures", "sample")
    place = shelf.sheet(samples, 16, 2)
    sheet = np.asarray(Image.open(tmp_path / "pictures" / place), float)
    assert sheet.shape == (48, 32, 3) and place == shelf.sheet(samples, 16, 2) != shelf.sheet(samples[::-1], 16, 2)
    for number, sample in enumerate(samples):
        whole = Image.open(tmp_path / "pictures" / shelf.picture(sample))
        small = np.asarray(whole.resize((16, 16), Image.Resampling.LANCZOS), float)
        top, left = number // 2 * 16, number % 2 * 16
        assert np.abs(sheet[top : top + 16, left : left + 16] - small).mean() < 25  # of another picture: some 80


def test_a_sheet_of_four_hundred_pictures_is_small_even_of_noise(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    noise = [encode_jpeg(Image.fromarray(random.integers(0, 256, (64, 64, 3), np.uint8)), 95) for _ in range(400)]
    shelf = Shelf(
        ShardSet.open(make_shard_set(tmp_path / "set", 400, 64, images=noise)), tmp_path / "pictures", "sample"
    )
    size = (tmp_path / "pictures" / shelf.sheet(range(400), 64, 20)).stat().st_size
    assert 5e5 < size < 1e6  # photographs take half of it
