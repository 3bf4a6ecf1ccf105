"""Sets that an earlier version embedded in sidecars are read and verified as ever."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fake_encoder import SPEC, expected
from foreign_tars import others, write_tars
from rich.console import Console
from sidecar_sets import add_sidecars

from core.shard_index import NPY
from core.shard_set import DamagedSampleError, ShardSet
from shard_builder.index_tars import index_shards
from shard_builder.verify import verify


@pytest.fixture
def folder(tmp_path: Path, console: Console) -> Path:
    folder = write_tars(tmp_path / "laion", others())
    index_shards(str(folder), size=24, workers=1, console=console)
    add_sidecars(folder, SPEC, expected)
    return folder


def test_embeddings_in_sidecars_are_read(folder: Path, console: Console) -> None:
    shard_set = ShardSet.open(str(folder))
    assert shard_set.text_encoder == SPEC and shard_set.text == ""
    for sample in range(10):
        assert np.array_equal(shard_set.embeddings(sample), expected(shard_set.captions(sample)))
    assert verify(str(folder), workers=1, console=console) == []


def test_a_flip_in_a_sidecar_is_found(folder: Path, console: Console) -> None:
    data = bytearray((folder / "00001.emb").read_bytes())
    data[200] ^= 1
    (folder / "00001.emb").write_bytes(bytes(data))
    whats = [(fault.file, fault.what) for fault in verify(str(folder), workers=1, console=console)]
    assert ("00001.emb", "its sha256 is not the one in the manifest") in whats
    assert ("00001.tar", "not what was written, by its checksum: npy") in whats
    shard_set = ShardSet.open(str(folder))
    with pytest.raises(DamagedSampleError, match="00001.emb") as caught:
        for sample in range(10):
            shard_set.embeddings(sample)
    assert caught.value.member == NPY
