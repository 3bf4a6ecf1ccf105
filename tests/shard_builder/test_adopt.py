"""Sets of others' tars get caption embeddings in sidecars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign_tars import others, write_tars
from photo_folders import folder_bytes
from rich.console import Console

from core.config import Choice
from core.errors import DamagedError
from core.manifest import load_manifest
from core.shard_set import ShardSet
from shard_builder import adopt
from shard_builder.adopt import embed_shards
from shard_builder.index_tars import index_shards
from shard_builder.verify import verify

MINILM = Choice("minilm")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tars(tmp_path / "laion", others())


def index(folder: Path, console: Console, **settings: Any) -> Any:
    return index_shards(str(folder), size=24, workers=1, console=console, **settings)


def test_embeddings_join_in_sidecars(folder: Path, console: Console, caption_cache: Path) -> None:
    before = {name: data for name, data in folder_bytes(folder).items() if name.endswith(".tar")}
    index(folder, console)
    manifest = embed_shards(str(folder), MINILM, cache_dir=caption_cache, console=console)
    assert manifest == load_manifest(str(folder))
    assert [entry.embeddings.name for entry in manifest.shards if entry.embeddings] == [
        "00000.emb",
        "00001.emb",
        "00002.emb",
    ]
    shard_set = ShardSet.open(str(folder))
    for sample in range(10):
        embeddings = shard_set.embeddings(sample)
        assert embeddings.shape == (len(shard_set.captions(sample)), shard_set.embed_dim)
        np.testing.assert_allclose(np.linalg.norm(embeddings.astype(float), axis=1), 1, atol=2e-3)
    assert len({shard_set.embeddings(n).tobytes() for n in range(10)}) == 10
    assert {name: data for name, data in folder_bytes(folder).items() if name.endswith(".tar")} == before
    assert verify(str(folder), workers=1, console=console) == []


def test_a_flip_in_a_sidecar_is_found(folder: Path, console: Console, caption_cache: Path) -> None:
    index(folder, console)
    embed_shards(str(folder), MINILM, cache_dir=caption_cache, console=console)
    data = bytearray((folder / "00001.emb").read_bytes())
    data[200] ^= 1
    (folder / "00001.emb").write_bytes(bytes(data))
    whats = [(fault.file, fault.what) for fault in verify(str(folder), workers=1, console=console)]
    assert ("00001.emb", "its sha256 is not the one in the manifest") in whats
    assert ("00001.tar", "not what was written, by its checksum: npy") in whats


def test_embedding_twice_changes_nothing(folder: Path, console: Console, caption_cache: Path) -> None:
    index(folder, console)
    embed_shards(str(folder), MINILM, cache_dir=caption_cache, console=console)
    before = folder_bytes(folder)
    embed_shards(str(folder), MINILM, cache_dir=caption_cache, console=console)
    assert folder_bytes(folder) == before


def test_embedding_killed_between_indexes_is_mended_by_the_next_run(
    folder: Path, console: Console, caption_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index(folder, console)
    calls: list[str] = []
    write = adopt._write_sidecar

    def stop_at_second(url: str, entry: Any, *rest: Any) -> Any:
        calls.append(entry.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return write(url, entry, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(adopt, "_write_sidecar", stop_at_second)
        embed_shards(str(folder), MINILM, cache_dir=caption_cache, console=console)
    with pytest.raises(DamagedError, match=r"00000\.idx"):
        ShardSet.open(str(folder))
    embed_shards(str(folder), MINILM, cache_dir=caption_cache, console=console)
    assert verify(str(folder), workers=1, console=console) == []


def test_a_tar_changed_since_it_was_indexed_is_refused(folder: Path, console: Console, caption_cache: Path) -> None:
    index(folder, console)
    (folder / "00000.idx").unlink()
    (folder / "00000.tar").write_bytes((folder / "00001.tar").read_bytes())
    with pytest.raises(DamagedError, match=r"00000.tar: is not the tar that was indexed"):
        embed_shards(str(folder), MINILM, cache_dir=caption_cache, console=console)
