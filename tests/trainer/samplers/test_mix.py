"""Mixed sets: exact shares over an epoch, and to within one draw in every batch."""

from __future__ import annotations

import numpy as np
import pytest
from epochs import epoch_of
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from core.errors import ConfigError
from trainer.samplers.mix import mix

SETS = st.lists(st.tuples(st.integers(1, 60), st.sampled_from([0.0, 0.5, 1.0, 2.0, 7.0])), min_size=1, max_size=4)


@settings(deadline=None, max_examples=80)
@given(SETS, st.integers(1, 12), st.integers(0, 3))
def test_shares_are_exact(sets: list[tuple[int, float]], batch_size: int, seed: int) -> None:
    sizes, weights = zip(*sets)
    assume(sum(weights) > 0 and sum(sizes) >= batch_size)
    epoch = epoch_of(batch_size, set_sizes=sizes, seed=seed)
    order = mix(epoch, weights)
    assert order.dtype == np.int64 and len(order) == epoch.steps * batch_size
    set_of = np.repeat(np.arange(len(sizes)), sizes)[order]
    shares = np.array(weights) / sum(weights)
    counts = np.bincount(set_of, minlength=len(sizes))
    assert (np.abs(counts - shares * len(order)) < 1 + 1e-9).all()
    rounded_by = counts - shares * len(order)  # largest remainders: who is rounded up lacked more than who is not
    assert rounded_by.max() - rounded_by.min() <= 1 + 1e-9
    for batch in set_of.reshape(epoch.steps, -1):
        found = np.bincount(batch, minlength=len(sizes))
        assert (np.abs(found - shares * batch_size) <= len(sizes)).all()
    visits = np.bincount(order, minlength=sum(sizes))
    for first, size in zip(np.cumsum([0, *sizes[:-1]]), sizes):
        own = visits[first : first + size]
        assert own.max() - own.min() <= 1


def test_two_sets_share_every_batch_to_within_one() -> None:
    epoch = epoch_of(30, set_sizes=[300, 60])
    order = mix(epoch, (1.0, 2.0))
    for batch in order.reshape(epoch.steps, -1):
        assert abs(int((batch >= 300).sum()) - 20) <= 1
    assert [int((order < 300).sum()), int((order >= 300).sum())] == [120, 240]


def test_rare_draws_stand_at_equal_distances_within_the_epoch() -> None:
    epoch = epoch_of(10, set_sizes=[78, 2])
    steps = np.flatnonzero((mix(epoch, (78.0, 2.0)).reshape(8, 10) >= 78).any(axis=1))
    assert len(steps) == 2 and steps[0] in (1, 2) and steps[1] in (5, 6)  # a quarter, three quarters


def test_ranks_get_both_sets() -> None:
    order = mix(epoch_of(40, set_sizes=[200, 200]), (1.0, 1.0))
    for batch in order.reshape(-1, 40):
        assert 0 < (batch[:20] < 200).sum() < 20


def test_seed_and_epoch_change_the_order() -> None:
    orders = {
        mix(epoch_of(8, set_sizes=[40, 24], seed=s, number=e), (1, 1)).tobytes()
        for s, e in ((0, 0), (0, 0), (1, 0), (0, 1))
    }
    assert len(orders) == 3


@pytest.mark.parametrize(
    ("weights", "complaint"),
    [
        ((1.0,), "weights has 1 numbers, data.train 2 sets"),
        ((1.0, -1.0), "give numbers of 0 or more"),
        ((0.0, 0.0), "not all of them 0"),
        ((1.0, float("inf")), "give numbers of 0 or more"),
    ],
)
def test_wrong_weights_are_refused(weights: tuple[float, ...], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        mix(epoch_of(8, set_sizes=[40, 24]), weights)


def test_a_set_without_samples_cannot_have_a_share() -> None:
    with pytest.raises(ConfigError, match="a set with a weight above 0 has no samples"):
        mix(epoch_of(8, set_sizes=[40, 0]), (1.0, 1.0))
