"""Ranks share every step in order, resumable anywhere; evaluation gives each sample to one of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ConfigError
from trainer.samplers.slices import rank_slice, step_slice, steps_per_epoch


@given(st.integers(1, 4), st.integers(1, 8), st.integers(0, 50))
def test_ranks_share_each_step_in_order_for_any_world_size(per_rank: int, world_size: int, rest: int) -> None:
    batch = per_rank * world_size
    order = np.random.default_rng(rest).permutation(3 * batch + rest)
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
