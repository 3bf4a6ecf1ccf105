"""Shard sets are read by number, every byte checked; damage is named by shard and sample."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from shard_sets import damage, make_shard_set

from core.errors import DamagedError, ManifestError
from core.shard_set import ShardSet


def test_samples_are_found_across_shards_and_sets(tmp_path: Path) -> None:
    urls = [make_shard_set(tmp_path / "a", 25), make_shard_set(tmp_path / "b", 7, seed=1)]
    both = ShardSet.open(urls)
    assert len(both) == 32 and list(both.shard_sizes) == [10, 10, 5, 7]
    assert both.locate(24) == (2, 4) and both.locate(25) == (3, 0)
    second = ShardSet.open(urls[1])
    assert bytes(both.member(30, "image")) == bytes(second.member(5, "image"))
    assert np.array_equal(both.embeddings(30), second.embeddings(5)) and both.embeddings(0).dtype == np.float16
    assert both.captions(30) == second.captions(5) and len(both.captions(0)) == 5


def test_a_copy_in_another_process_reads_the_same(tmp_path: Path) -> None:
    shards = ShardSet.open(make_shard_set(tmp_path, 12))
    shards.member(3, "image")  # with a file open
    copy = pickle.loads(pickle.dumps(shards))
    assert bytes(copy.member(11, "image")) == bytes(shards.member(11, "image"))
    assert np.array_equal(copy.image_ids(np.arange(12)), shards.image_ids(np.arange(12)))


@pytest.mark.parametrize("member", ["image", "npy", "json", "txt"])
def test_a_flipped_bit_names_shard_and_sample(tmp_path: Path, member: str) -> None:
    url = make_shard_set(tmp_path, 25)
    damage(url, 17, member)
    shards = ShardSet.open(url)
    with pytest.raises(DamagedError, match=rf"train-00001\.tar: sample 0*17: the {member} is damaged"):
        shards.member(17, member)
    shards.member(16, member)


def test_a_damaged_index_or_a_short_shard_is_refused_when_opened(tmp_path: Path) -> None:
    url = make_shard_set(tmp_path / "a", 12)
    index = tmp_path / "a" / "train-00000.idx"
    whole = index.read_bytes()
    index.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
    with pytest.raises(DamagedError, match=r"train-00000\.idx: the index is not the one the manifest names"):
        ShardSet.open(url)
    index.write_bytes(whole)
    tar = tmp_path / "a" / "train-00001.tar"
    tar.write_bytes(tar.read_bytes()[:-512])
    with pytest.raises(DamagedError, match=r"train-00001\.tar: has \d+ bytes, the manifest says \d+"):
        ShardSet.open(url)


def test_sets_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    urls = [make_shard_set(tmp_path / "a", 5), make_shard_set(tmp_path / "b", 5, size=48)]
    with pytest.raises(ManifestError, match="its images are .*48"):
        ShardSet.open(urls)
    urls[1] = make_shard_set(tmp_path / "c", 5, embed_dim=16)
    with pytest.raises(ManifestError, match="its text encoder is"):
        ShardSet.open(urls)
