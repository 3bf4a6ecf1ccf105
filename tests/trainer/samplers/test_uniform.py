"""Uniform: a pure function of seed and epoch, every sample at most once, windows of whole shards."""

from __future__ import annotations

import numpy as np
import pytest
from epochs import epoch_of
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ConfigError
from core.seeding import permutation
from trainer.samplers.uniform import uniform


def epoch_order(num_samples: int, seed: int, epoch: int, sizes: np.ndarray, window: int = 0) -> np.ndarray:
    """The whole permutation: batches of one sample leave nothing over."""
    assert sizes.sum() == num_samples
    return uniform(epoch_of(1, shard_sizes=sizes, seed=seed, number=epoch), window)


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


def test_whole_batches_are_the_first_of_the_permutation_and_the_rest_is_dropped() -> None:
    order = uniform(epoch_of(8, shard_sizes=np.array([30, 17]), seed=5, number=3))
    assert order.tolist() == permutation(47, "samples", 5, 3)[:40].tolist()


def test_a_negative_window_is_refused() -> None:
    with pytest.raises(ConfigError, match="window_shards is -1: 0 shuffles over everything"):
        uniform(epoch_of(8, shard_sizes=np.array([30])), -1)
