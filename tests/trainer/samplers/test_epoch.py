"""Cycles visit equally often; a repeat has a draw of its own, and with it another crop and caption."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from epochs import epoch_of
from hypothesis import given
from hypothesis import strategies as st

from core.config import Choice
from core.parts import check
from core.seeding import permutation
from trainer.data.columns import drawn_captions
from trainer.pictures.config import AugmentConfig
from trainer.pictures.draw import BOX, FLIP, draw
from trainer.samplers import SAMPLERS
from trainer.samplers.epoch import Cycle, draws_of

# 99.9 % quantiles of chi-square by degrees of freedom: a right generator fails once in a thousand seeds.
CHI_SQUARE = {3: 16.27, 8: 26.12, 9: 27.88}


@given(st.integers(1, 20), st.lists(st.integers(1, 30), min_size=1, max_size=12))
def test_a_cycle_visits_all_numbers_equally_often_and_none_twice_in_a_take(n: int, counts: list[int]) -> None:
    cycle, seen = Cycle(epoch_of(1, shard_sizes=[1]), n, "test"), Counter(range(n))
    for count in counts:
        taken = cycle.take(count)
        assert len(taken) == count and set(taken.tolist()) <= set(range(n))
        most = max(Counter(taken.tolist()).values())
        assert most <= -(-count // n) + (count > n)  # once where there are enough
        seen.update(taken.tolist())
        assert max(seen.values()) - min(seen.values()) <= 1


def test_the_orders_of_a_cycle_stay_what_they_were() -> None:
    """Runs that go on with a later version must find the same order: turn after turn, from 0."""
    epoch = epoch_of(1, shard_sizes=[1], seed=3, number=2)
    cycle = Cycle(epoch, 50, "a", 7)
    for turn in range(3):
        assert cycle.take(50).tolist() == permutation(50, "a", 7, turn, 3, 2).tolist()
    batch = np.arange(100, 120)
    assert epoch.shuffled(batch, 4).tolist() == batch[permutation(20, "batch", 4, 3, 2)].tolist()


def test_a_cycle_is_shuffled_anew_every_time_and_by_every_key() -> None:
    cycle = Cycle(epoch_of(1, shard_sizes=[1]), 50, "a")
    first, second = cycle.take(50), cycle.take(50)
    others = [
        Cycle(epoch_of(1, shard_sizes=[1], seed=s, number=e), 50, k)
        for s, e, k in ((0, 0, "b"), (1, 0, "a"), (0, 1, "a"))
    ]
    orders = [first, second, *(other.take(50) for other in others)]
    assert len({order.tobytes() for order in orders}) == 5


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(10, 15))
def test_draws_number_the_occurrences_of_each_sample(samples: list[int], num_samples: int) -> None:
    seen: Counter[int] = Counter()
    expected = []
    for sample in samples:
        expected.append(sample + seen[sample] * num_samples)
        seen[sample] += 1
    draws = draws_of(np.array(samples, dtype=np.int64), num_samples)
    assert draws.dtype == np.int64 and draws.tolist() == expected


def test_captions_of_repeats_are_drawn_evenly() -> None:
    draws = draws_of(np.full(400, 7), 100)
    chosen = drawn_captions(3, 5, draws, np.full(400, 4))
    assert chi_square(np.bincount(chosen, minlength=4)) < CHI_SQUARE[3]
    again = drawn_captions(3, 6, draws, np.full(400, 4))
    assert (chosen != again).any()


def test_crops_of_repeats_are_drawn_evenly() -> None:
    draws = draws_of(np.full(900, 3), 10)
    config = AugmentConfig(crop_scale=(0.25, 0.25), crop_ratio=(1.0, 1.0), flip=0.5)
    numbers = draw(config, 1, 2, draws, 96, 96).numbers  # boxes of 48 x 48: corners from 0 to 48
    top, left, height, width = numbers[:, BOX].T
    assert (height == 48).all() and (width == 48).all()
    for corner in (top, left):
        assert corner.min() >= 0 and corner.max() <= 48
        thirds = np.minimum(corner // (49 / 3), 2).astype(int)
        counts = np.bincount(thirds, minlength=3)
        assert chi_square(counts) < CHI_SQUARE[3]
    rows, columns = (np.minimum(corner // (49 / 3), 2).astype(int) for corner in (top, left))
    assert chi_square(np.bincount(3 * rows + columns, minlength=9)) < CHI_SQUARE[8]  # corners are independent
    assert abs(int(numbers[:, FLIP].sum()) - 450) < 60


def test_the_table_names_every_sampler_and_options_are_checked() -> None:
    assert set(SAMPLERS) == {"uniform", "class_balanced", "topical", "mix"}
    options = {"class_balanced": {"num_classes": "4", "num_per_class": "2"}, "mix": {"weights": "1, 2"}}
    for name in SAMPLERS:
        check(SAMPLERS, Choice(name, options.get(name, {})), "data.sampler", given=["epoch"])


def chi_square(counts: np.ndarray) -> float:
    expected = counts.sum() / len(counts)
    return float(((counts - expected) ** 2 / expected).sum())


def test_the_measure_finds_what_is_uneven() -> None:
    assert chi_square(np.array([140, 80, 90, 90])) > CHI_SQUARE[3]
    with pytest.raises(AssertionError):
        assert chi_square(np.bincount(np.zeros(400, dtype=int), minlength=4)) < CHI_SQUARE[3]
