"""Photos, shard sets built of them, and encoders as checkpoints keep them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fake_encoder import FakeEncoder
from photo_folders import quick_recipe, write_photos
from rich.console import Console

from core.config import Choice
from core.text_encoders import TEXT_ENCODERS
from shard_builder.build import build_shards
from shard_builder.config import ImageConfig

STORED = 32
NUM_PHOTOS = 6


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of small JPEGs that are wider than high; captions.jsonl says in which order."""
    write_photos(tmp_path / "photos", NUM_PHOTOS)
    return tmp_path / "photos"


@pytest.fixture
def build_set(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """A function that builds a set of the photos: three samples a shard, 32 pixels."""
    monkeypatch.setitem(TEXT_ENCODERS, "fake", FakeEncoder)

    def build(fit: str = "crop", codec: str = "jpeg") -> str:
        image = ImageConfig(size=STORED, fit=fit, codec=codec)  # type: ignore[arg-type]
        out = tmp_path / f"set-{fit}-{codec}"
        recipe = quick_recipe(
            photos / "captions.jsonl",
            out,
            tmp_path / "cache",
            image=image,
            samples_per_shard=3,
            engine=Choice("processes", {"pillow_simd": False}),  # which rounds some pixels to the level beside
        )
        build_shards(recipe, Console(quiet=True))
        return str(out)

    return build
