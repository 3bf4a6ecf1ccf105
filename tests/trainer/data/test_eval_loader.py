"""Evaluation sees every sample once, with all of its captions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from shard_sets import damage, make_shard_set

from core.errors import DamagedError
from core.shard_index import IMAGE
from core.shard_set import ShardSet
from trainer.data.loader import EvalLoader

N = 43


@pytest.fixture(scope="module")
def shard_set(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return ShardSet.open(make_shard_set(tmp_path_factory.mktemp("set"), N, num_captions=[1 + i % 7 for i in range(N)]))


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 0), (1, 2), (2, 1), (3, 0), (50, 0)])
def test_every_sample_comes_once_over_the_ranks_with_its_pixels_and_captions(
    shard_set: ShardSet, world_size: int, num_workers: int
) -> None:
    seen: list[int] = []
    for rank in range(world_size):
        loader = EvalLoader(shard_set, batch_size=8, rank=rank, world_size=world_size, num_workers=num_workers)
        batches = list(loader)
        assert len(batches) == len(loader)
        assert all(len(batch.samples) == 8 for batch in batches[:-1])
        for batch in batches:
            text = batch.ragged("text")
            ends = np.cumsum(text.counts.numpy())
            assert len(text.values) == ends[-1]
            assert len(batch.images) == len(batch.column("image_id")) == len(batch.samples) == len(batch)
            for row, sample in enumerate(batch.samples.tolist()):
                own = text.values[ends[row] - text.counts[row] : ends[row]]
                assert (own.numpy() == shard_set.embeddings(sample)).all()
                pixels = simplejpeg.decode_jpeg(bytes(shard_set.member(sample, IMAGE)))
                assert (batch.images[row].permute(1, 2, 0).numpy() == pixels).all()
                seen.append(sample)
        loader.close()
    assert seen == list(range(N))


def test_it_can_be_iterated_again_and_left_unfinished(shard_set: ShardSet) -> None:
    loader = EvalLoader(shard_set, batch_size=10, num_workers=1)
    next(iter(loader))
    first, second = ([b.samples.tolist() for b in loader] for _ in range(2))
    assert first == second and sum(map(len, first)) == N
    loader.close()


def test_a_damaged_sample_ends_an_evaluation(tmp_path: Path) -> None:
    url = make_shard_set(tmp_path, 20)
    damage(url, 12)
    with pytest.raises(DamagedError, match=r"train-00001\.tar: sample 000000012"):
        list(EvalLoader(ShardSet.open(url), batch_size=8))
