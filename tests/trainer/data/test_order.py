"""Order is a pure function: every sample once, the same for any number of ranks, resumable anywhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ConfigError
from trainer.data.order import epoch_order, rank_slice, step_slice, steps_per_epoch

SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=12).map(lambda sizes: np.array(sizes, dtype=np.int64))


@given(SIZES, st.integers(0, 5), st.integers(0, 3), st.integers(0, 9))
def test_every_sample_stands_once_in_an_epoch(sizes: np.ndarray, window: int, seed: int, epoch: int) -> None:
    order = epoch_order(int(sizes.sum()), seed, epoch, sizes, window)
    assert order.dtype == np.int64
    assert sorted(order) == list(range(sizes.sum()))


@given(SIZES, st.integers(1, 5), st.integers(0, 9))
def test_a_window_holds_whole_shards_and_no_others(sizes: np.ndarray, window: int, epoch: int) -> None:
    order = epoch_order(int(sizes.sum()), 7, epoch, sizes, window)
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    visited: list[int] = []
    position = 0
    while position < len(order):
        shards: set[int] = set()
        for number in shard_of[order[position:]].tolist():  # the window's shards: the first `window` to appear
            if number not in shards and len(shards) == window:
                break
            shards.add(number)
        length = int(sizes[sorted(shards)].sum())
        assert set(shard_of[order[position : position + length]].tolist()) == shards
        visited += shards
        position += length
    assert sorted(visited) == list(range(len(sizes)))


def test_samples_are_mixed_within_a_window_and_windows_change_with_the_epoch() -> None:
    sizes = np.full(10, 100)
    first, second = (epoch_order(1000, 0, epoch, sizes, 2) for epoch in (0, 1))
    shard_of = np.repeat(np.arange(10), 100)
    assert len(set(shard_of[first[:20]].tolist())) == 2
    assert set(shard_of[first[:200]].tolist()) != set(shard_of[second[:200]].tolist())


@pytest.mark.parametrize("window", [0, 3])
def test_seed_and_epoch_both_change_the_order_and_nothing_else_does(window: int) -> None:
    sizes = np.full(10, 20)
    order = epoch_order(200, 1, 2, sizes, window)
    assert (order == epoch_order(200, 1, 2, sizes, window)).all()
    assert (order != epoch_order(200, 2, 1, sizes, window)).any()
    assert (order != epoch_order(200, 1, 3, sizes, window)).any()


@given(st.integers(1, 4), st.integers(1, 8), st.integers(0, 50))
def test_ranks_share_each_step_in_order_for_any_world_size(per_rank: int, world_size: int, rest: int) -> None:
    batch = per_rank * world_size
    order = epoch_order(3 * batch + rest, 0, 0)
    for step in range(steps_per_epoch(len(order), batch, world_size)):
        parts = [step_slice(order, step, batch, rank, world_size) for rank in range(world_size)]
        assert np.concatenate(parts).tolist() == order[step * batch : (step + 1) * batch].tolist()
        assert {len(part) for part in parts} == {per_rank}


def test_the_last_partial_batch_is_dropped() -> None:
    assert steps_per_epoch(1000, 256, 4) == 3


def test_a_batch_larger_than_the_set_is_refused_with_figures() -> None:
    with pytest.raises(ConfigError, match=r"is 512, the data set has 300 samples.*Set it to at most 300\."):
        steps_per_epoch(300, 512, 4)


def test_a_batch_that_ranks_cannot_share_is_refused_with_the_nearest_that_they_can() -> None:
    with pytest.raises(ConfigError, match=r"is 100, which 8 processes cannot share equally\. Set it to 96\."):
        steps_per_epoch(1000, 100, 8)


@given(st.integers(0, 200), st.integers(1, 9))
def test_evaluation_gives_each_sample_to_one_rank(num_samples: int, world_size: int) -> None:
    parts = [rank_slice(num_samples, rank, world_size) for rank in range(world_size)]
    assert np.concatenate(parts).tolist() == list(range(num_samples))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
