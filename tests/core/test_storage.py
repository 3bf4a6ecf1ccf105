"""What is written is whole or absent; locks name their owner; remote files arrive verified."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from core.errors import DamagedError, StorageError
from core.storage import (
    PARTIAL_PREFIX,
    exists,
    fetch,
    list_names,
    publish,
    publish_bytes,
    publish_folder,
    read_bytes,
    remove,
    sha256_of,
    size,
    sweep_partials,
)


def test_published_bytes_are_there_and_nothing_else(tmp_path: Path) -> None:
    digest = publish_bytes(b"abc", tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").read_bytes() == b"abc" and digest == sha256_of(tmp_path / "a" / "b")
    assert list_names(tmp_path / "a") == ["b"]


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    publish_bytes(b"old", tmp_path / "f")

    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        publish(fail, tmp_path / "f")
    with pytest.raises(DamagedError, match="was expected"):
        publish(lambda path: path.write_bytes(b"other") and None, tmp_path / "f", "0" * 64)
    assert list_names(tmp_path) == ["f"] and read_bytes(tmp_path / "f") == b"old"


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    publish_folder(lambda folder: (folder / "a").write_text("x") and None, tmp_path / "c")
    assert (tmp_path / "c" / "a").read_text() == "x"
    with pytest.raises(StorageError, match="is there already"):
        publish_folder(lambda folder: None, tmp_path / "c")
    with pytest.raises(ZeroDivisionError):
        publish_folder(lambda folder: 1 // 0, tmp_path / "d")  # type: ignore[arg-type]
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_partials_of_killed_writers_are_swept(tmp_path: Path) -> None:
    (tmp_path / f"{PARTIAL_PREFIX}x").write_bytes(b"half")
    (tmp_path / f"{PARTIAL_PREFIX}folder").mkdir()
    (tmp_path / "kept").write_bytes(b"whole")
    sweep_partials(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


def test_remote_files_are_fetched_once_and_verified(tmp_path: Path) -> None:
    url = f"memory://bucket-{time.time_ns()}/a.tar"
    digest = publish_bytes(b"shard", url)
    assert exists(url) and size(url) == 5 and read_bytes(url) == b"shard"
    path = fetch(url, tmp_path, digest)
    assert path.read_bytes() == b"shard"
    remove(url)
    assert fetch(url, tmp_path, digest) == path  # from the cache
    with pytest.raises(StorageError, match="no cache folder is set"):
        fetch(url, None, digest)


def test_a_remote_file_of_other_bytes_is_refused(tmp_path: Path) -> None:
    url = f"memory://bucket-{time.time_ns()}/a.tar"
    publish_bytes(b"shard", url)
    with pytest.raises(DamagedError, match="was expected"):
        fetch(url, tmp_path, "0" * 64)
    assert not list(tmp_path.rglob("*.tar"))


def test_missing_files_are_named(tmp_path: Path) -> None:
    for ask in (read_bytes, size):
        with pytest.raises(StorageError, match=r"nothing: no such file\."):
            ask(tmp_path / "nothing")
    with pytest.raises(StorageError, match="no such folder"):
        list_names(tmp_path / "nothing")
