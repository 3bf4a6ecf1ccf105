"""A folder that is made lasts: its name is synced in the folder above it."""

from __future__ import annotations

from pathlib import Path

import pytest

from core import sync
from core.sync import make_folder


def test_each_new_folder_is_synced_in_its_parent_and_a_known_one_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(sync, "sync", synced.append)
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir() and synced == [tmp_path, tmp_path / "a"]
    make_folder(tmp_path / "a" / "b")
    assert len(synced) == 2


def test_a_file_in_the_way_is_an_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    with pytest.raises(OSError, match="a"):
        make_folder(tmp_path / "a" / "b")
