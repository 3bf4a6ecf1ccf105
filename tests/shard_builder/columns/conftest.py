"""One built set for all tests of columns, copied for each."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from column_sets import adopt_set, build_set
from fake_encoder import FakeEncoder

from core.text_encoders import TEXT_ENCODERS


@pytest.fixture(scope="session", autouse=True)
def fake_encoder() -> None:
    """`encoder=fake` needs no weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TEXT_ENCODERS, "fake", FakeEncoder)
        yield


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def sets(tmp_path_factory: pytest.TempPathFactory, cache: Path, fake_encoder: None) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    build_set(folder, cache)
    adopt_set(folder)
    return folder


@pytest.fixture
def built(sets: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sets / "built", tmp_path / "built"))


@pytest.fixture
def adopted(sets: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sets / "adopted", tmp_path / "adopted"))
