"""Topical batches: exact shares of topical steps and of topics, everything else uniform."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from epochs import epoch_of
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import ConfigError
from trainer.samplers.topical import topical

SIZES = (400, 200, 100, 100)  # of topics 0 to 3; 50 samples more have none
TOPICS = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 3, -1], (*SIZES, 50)))


def topics_of_steps(order: np.ndarray, topics: np.ndarray, steps: int) -> list[int]:
    """The one topic of each batch, or -1."""
    kinds = [set(topics[batch].tolist()) for batch in order.reshape(steps, -1)]
    return [next(iter(kind)) if len(kind) == 1 else -1 for kind in kinds]


@settings(deadline=None, max_examples=40)
@given(st.floats(0, 1), st.sampled_from([0.5, 1.0, 3.0, float("inf")]), st.integers(0, 20))
def test_shares_are_exact_over_an_epoch(p_topical: float, temperature: float, seed: int) -> None:
    epoch = epoch_of(10, topics=TOPICS, seed=seed)
    order = topical(epoch, p_topical, temperature)
    assert order.dtype == np.int64 and len(order) == epoch.steps * 10
    found = Counter(topics_of_steps(order, TOPICS, epoch.steps))
    num_topical = epoch.steps - found[-1]
    assert abs(num_topical - p_topical * epoch.steps) < 1
    weights = np.array(SIZES, dtype=float) ** (1 / temperature)
    for topic, weight in enumerate(weights / weights.sum()):
        assert abs(found[topic] - weight * num_topical) < 1 + 1e-9


def test_a_topic_repeats_no_sample_before_all_have_come() -> None:
    epoch = epoch_of(10, topics=TOPICS, seed=4)
    order = topical(epoch, 1.0).reshape(epoch.steps, -1)
    for topic in range(4):
        own = np.concatenate([batch for batch in order if TOPICS[batch[0]] == topic])
        counts = np.bincount(own, minlength=len(TOPICS))[topic == TOPICS]
        assert counts.max() - counts.min() <= 1
    assert all(len(set(batch.tolist())) == 10 for batch in order)


def test_a_topic_smaller_than_the_batch_repeats_its_samples() -> None:
    topics = np.array([0, 0, 0, 1, 1, 1] * 4)
    order = topical(epoch_of(16, topics=topics), 1.0)
    assert sorted(Counter(order.tolist()).values()) == [1] * 8 + [2] * 4


def test_uniform_steps_take_samples_without_a_topic_too_and_none_twice() -> None:
    order = topical(epoch_of(10, topics=TOPICS), 0.0)
    assert len(set(order.tolist())) == len(order)
    assert (TOPICS[order] == -1).any()


def test_a_temperature_near_0_draws_the_largest_topic_alone() -> None:
    topics = np.where(TOPICS < 0, -1, 3 - TOPICS)  # the largest is the last
    epoch = epoch_of(10, topics=topics)
    order = topical(epoch, 1.0, 0.002)  # 400 ** 500 is beyond any float
    assert set(topics_of_steps(order, topics, epoch.steps)) == {3}


def test_seed_and_epoch_change_the_order() -> None:
    orders = {
        topical(epoch_of(10, topics=TOPICS, seed=s, number=e)).tobytes() for s, e in ((0, 0), (0, 0), (1, 0), (0, 1))
    }
    assert len(orders) == 3


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"p_topical": 1.5}, "p_topical is 1.5: it is a share"),
        ({"p_topical": -0.1}, "p_topical is -0.1"),
        ({"temperature": 0}, "temperature is 0: give a number above 0"),
        ({"column": "none"}, "no sample has a topic in column 'none'"),
    ],
)
def test_wrong_options_are_refused(options: dict, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        topical(epoch_of(10, topics=TOPICS, none=np.full(len(TOPICS), -1)), **options)
