"""A small folder of captioned pictures, and recipes that build it."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from in_this_process import InThisProcess
from photo_folders import write_photos
from rich.console import Console

from core.config import Choice
from shard_builder.config import BuildConfig, ImageConfig

MakeConfig = Callable[..., BuildConfig]


@pytest.fixture(scope="session")
def caption_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all tests: each caption is encoded once in the session."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """`photos/captions.jsonl` over 30 JPEGs of several sizes, one to three captions each."""
    return write_photos(tmp_path / "photos", 30)


@pytest.fixture
def make_config(tmp_path: Path, photos: Path, caption_cache: Path) -> MakeConfig:
    """A recipe for `photos` into `tmp_path/out`; keywords replace its settings."""

    def make(**settings: Any) -> BuildConfig:
        defaults: dict[str, Any] = {
            "source": Choice("jsonl", {"file": str(photos)}),
            "out": str(tmp_path / settings.pop("name", "out")),
            "image": ImageConfig(size=32),
            "samples_per_shard": 8,
            "workers": 1,
            "cache_dir": caption_cache,
        }
        return BuildConfig(**{**defaults, **settings})

    return make


@pytest.fixture
def console() -> Console:
    """A console whose text can be read back: `console.file.getvalue()`."""
    return Console(file=io.StringIO(), width=160)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are functions of this process."""
    monkeypatch.setattr("shard_builder.index_tars.ProcessesEngine", InThisProcess)
    monkeypatch.setattr("shard_builder.verify.ProcessesEngine", InThisProcess)
