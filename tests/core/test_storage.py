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
    list_folders,
    list_names,
    publish,
    publish_bytes,
    publish_folder,
    read_bytes,
    read_start,
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


def listed_folder(kind: str, tmp_path: Path) -> str:
    """A folder with files and folders, of some storage."""
    roots = {"path": str(tmp_path / "set"), "file": f"file://{tmp_path}/set", "memory": f"memory://b-{time.time_ns()}"}
    url = roots[kind]
    for name in ("b.tar", "a.tar", "a.idx", ".hidden", "columns/labels/column.json", "columns/text.a/column.json"):
        publish_bytes(b"x", f"{url}/{name}")
    publish_bytes(b"x", f"{url}/b.folder/deep/a.json")
    return url


@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize("kind", ["path", "file", "memory"])
def test_a_listing_has_the_names_of_its_own_level_in_order(tmp_path: Path, kind: str, slash: str) -> None:
    url = listed_folder(kind, tmp_path)
    assert list_names(url + slash) == [".hidden", "a.idx", "a.tar", "b.tar"]
    assert list_folders(url + slash) == ["b.folder", "columns"]
    assert list_folders(f"{url}/columns{slash}") == ["labels", "text.a"] and list_names(f"{url}/columns{slash}") == []
    assert list_names(f"{url}/columns/labels") == ["column.json"] and list_folders(f"{url}/columns/labels") == []


@pytest.mark.parametrize("kind", ["path", "file", "memory"])
def test_a_listing_of_no_folder_is_an_error_with_its_name(tmp_path: Path, kind: str) -> None:
    url = listed_folder(kind, tmp_path)
    for ask in (list_names, list_folders):
        with pytest.raises(StorageError, match=r"/gone: no such folder\."):
            ask(f"{url}/gone")
    assert read_start(f"{url}/a.tar", 8) == b"x" and read_start(f"{url}/a.tar", 0) == b""


def test_missing_files_are_named(tmp_path: Path) -> None:
    for ask in (read_bytes, size):
        with pytest.raises(StorageError, match=r"nothing: no such file\."):
            ask(tmp_path / "nothing")
    with pytest.raises(StorageError, match="no such folder"):
        list_names(tmp_path / "nothing")
