"""Where no shard set is, the sentence says what is there instead, and which command helps."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from shard_sets import make_shard_set

from core.errors import ManifestError
from core.manifest import load_manifest


def sentence_for(url: Path) -> str:
    with pytest.raises(ManifestError) as error:
        load_manifest(str(url))
    return str(error.value)


def test_a_folder_of_raw_tars_gets_index_shards(tmp_path: Path) -> None:
    make_shard_set(tmp_path / "set", 4)
    (tmp_path / "raw").mkdir()
    shutil.copy(tmp_path / "set/train-00000.tar", tmp_path / "raw/00000.tar")
    assert f"It holds tars: `shardclip index-shards {tmp_path / 'raw'}` makes a set" in sentence_for(tmp_path / "raw")
    assert f"It is a file: name a folder, {tmp_path / 'raw'}." in sentence_for(tmp_path / "raw/00000.tar")


def test_what_else_may_be_there(tmp_path: Path) -> None:
    assert "There is no such folder." in sentence_for(tmp_path / "nowhere")
    (tmp_path / "begun/.build").mkdir(parents=True)
    assert "A build was not finished there: the same `shardclip build`" in sentence_for(tmp_path / "begun")
    make_shard_set(tmp_path / "coco/train", 4)
    make_shard_set(tmp_path / "coco/val", 4)
    assert "Name one of its folders: train, val." in sentence_for(tmp_path / "coco")
    (tmp_path / "empty").mkdir()
    assert "Build one with `shardclip build`." in sentence_for(tmp_path / "empty")
