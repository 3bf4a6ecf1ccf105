"""verify --deep: what the webdataset library reads from a set is what our own reader gives, or it is named."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign_tars import others, write_tars
from rich.console import Console
from shard_sets import make_shard_set

from core import webdataset_library
from core.shard_set import ShardSet
from shard_builder import verify_deep
from shard_builder.build import build_shards
from shard_builder.config import BuildConfig, ImageConfig
from shard_builder.index_tars import index_shards
from shard_builder.verify import verify

MakeConfig = Callable[..., BuildConfig]
QUIET = Console(quiet=True)


def found(url: str) -> list[tuple[str, str, str]]:
    return verify_deep.differences(url, None, QUIET)


@pytest.mark.parametrize("codec", ["jpeg", "raw"])
def test_a_built_set_reads_the_same_through_the_library(make_config: MakeConfig, codec: Any) -> None:
    config = make_config(image=ImageConfig(size=32, codec=codec))
    build_shards(config, QUIET)
    said = Console(file=io.StringIO(), width=400)
    assert verify(config.out, workers=1, console=said, deep=True) == []
    assert "and the webdataset library reads the same" in said.file.getvalue()  # type: ignore[attr-defined]


def test_an_adopted_set_reads_the_same_through_the_library(tmp_path: Path) -> None:
    folder = write_tars(tmp_path / "tars", [*others(10), {"__key__": "alone", "cls": b"3"}])
    index_shards(str(folder), "train", 32, console=QUIET)
    assert found(str(folder)) == []


READS = {
    "another picture": ("member", lambda real, self, n, name: real(self, (n + 1) % 5 if name == "image" else n, name)),
    "another text": ("member", lambda real, self, n, name: real(self, (n + 1) % 5 if name == "txt" else n, name)),
    "another json": ("info", lambda real, self, n: {**real(self, n), "image_id": "another"}),
    "other embeddings": ("embeddings", lambda real, self, n: real(self, n)[::-1]),
    "another name": ("key", lambda real, self, n: real(self, (n + 1) % 5)),
}


@pytest.mark.parametrize("fault", READS)
def test_a_reader_that_gives_anything_else_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    url = make_shard_set(tmp_path, 5, num_captions=2)
    assert found(url) == []
    name, wrong = READS[fault]
    real = getattr(ShardSet, name)
    monkeypatch.setattr(ShardSet, name, lambda self, *arguments: wrong(real, self, *arguments))
    differences = found(url)
    assert differences and all(file == "train-00000.tar" for file, _, _ in differences)


def test_decoders_that_differ_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = make_shard_set(tmp_path, 3)
    real = verify_deep.decoded
    monkeypatch.setattr(verify_deep, "decoded", lambda sample, picture: _inverted(real(sample, picture)))
    assert [what for _, _, what in found(url)] == ["the webdataset library decodes another picture"] * 3


def _inverted(sample: dict[str, Any]) -> dict[str, Any]:
    return {**sample, "jpg": 255 - np.asarray(sample["jpg"])}


def test_a_sample_that_the_library_does_not_come_to_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = make_shard_set(tmp_path, 4)
    real = webdataset_library.raw_samples
    monkeypatch.setattr(verify_deep, "raw_samples", lambda tar: list(real(tar))[:3])
    assert found(url) == [
        ("train-00000.tar", "000000003", "the webdataset library does not come to this sample"),
    ]


def test_a_damaged_set_is_not_read_deeper(tmp_path: Path) -> None:
    url = make_shard_set(tmp_path, 4)
    tar = tmp_path / "train-00000.tar"
    with tarfile.open(tar) as members:
        offset = members.getmembers()[0].offset_data
    data = bytearray(tar.read_bytes())
    data[offset + 40] ^= 1
    tar.write_bytes(bytes(data))
    faults = verify(url, workers=1, console=QUIET, deep=True)
    assert faults and not any("webdataset" in fault.what for fault in faults)
