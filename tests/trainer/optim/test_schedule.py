"""The learning rate over a run."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.config import Choice
from core.errors import ConfigError
from trainer.optim import schedules
from trainer.optim.config import OptimConfig
from trainer.optim.schedule import lr_at

CONFIG = OptimConfig(lr=2.0, warmup_steps=10, min_lr_ratio=0.1)


def scheduled(name: str, **values: Any) -> OptimConfig:
    options = {key: values.pop(key) for key in ("cycles", "growth") if key in values}
    return OptimConfig(schedule=Choice(name, options), **values)


def rates(total: int, config: OptimConfig) -> list[float]:
    return [lr_at(step, total, config) for step in range(total)]


def test_warm_up_is_linear_and_reaches_the_peak_at_its_last_step() -> None:
    rates = [lr_at(step, 110, CONFIG) for step in range(10)]
    assert rates == pytest.approx([0.2 * (i + 1) for i in range(10)])


def test_after_warm_up_the_rate_is_half_a_cosine_to_the_floor() -> None:
    assert lr_at(10, 110, CONFIG) == pytest.approx(2.0)
    assert lr_at(60, 110, CONFIG) == pytest.approx((2.0 + 0.2) / 2)
    assert lr_at(35, 110, CONFIG) == pytest.approx(0.2 + 1.8 * (1 + math.cos(math.pi / 4)) / 2)
    assert lr_at(109, 110, CONFIG) == pytest.approx(0.2, abs=1e-3)
    falling = [lr_at(step, 110, CONFIG) for step in range(10, 110)]
    assert falling == sorted(falling, reverse=True)


def test_without_warm_up_the_run_starts_at_the_peak() -> None:
    assert lr_at(0, 5, OptimConfig(lr=3.0, warmup_steps=0)) == 3.0


def test_a_warm_up_longer_than_the_run_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"warmup_steps is 500, but the run has 200 steps.*Set it to about 20"):
        lr_at(0, 200, OptimConfig())


@settings(deadline=None)
@given(
    name=st.sampled_from(["cosine", "linear", "constant"]),
    warmup=st.integers(0, 40),
    after=st.integers(1, 300),
    floor=st.floats(0, 1),
)
def test_every_step_has_the_rate_of_the_closed_form(name: str, warmup: int, after: int, floor: float) -> None:
    config = scheduled(name, lr=0.3, warmup_steps=warmup, min_lr_ratio=0.0 if name == "constant" else floor)
    way = np.arange(after) / after  # from 0 to below 1
    falling = {"cosine": (1 + np.cos(np.pi * way)) / 2, "linear": 1 - way, "constant": np.ones(after)}[name]
    lowest = config.min_lr_ratio
    expected = [*(0.3 * np.arange(1, warmup + 1) / max(warmup, 1)), *(0.3 * (lowest + (1 - lowest) * falling))]
    np.testing.assert_allclose(rates(warmup + after, config), expected, rtol=1e-12, atol=1e-15)


def test_the_usual_schedule_has_the_bits_that_it_always_had() -> None:
    config = OptimConfig(lr=3e-4, warmup_steps=7, min_lr_ratio=0.05)
    for step in range(7, 131):
        cosine = (1 + math.cos(math.pi * ((step - 7) / (131 - 7)))) / 2
        assert lr_at(step, 131, config) == 3e-4 * (0.05 + (1 - 0.05) * cosine)


@settings(deadline=None)
@given(
    warmup=st.integers(0, 20),
    lengths=st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 20)),
    floor=st.floats(0, 1),
)
def test_warm_restarts_are_cosines_one_after_the_other(
    warmup: int, lengths: tuple[int, int, int], floor: float
) -> None:
    cycles, growth, first = lengths
    each = [first * growth**cycle for cycle in range(cycles)]  # whole steps: nothing is rounded
    config = scheduled("warm_restarts", cycles=cycles, growth=growth, lr=2.0, warmup_steps=warmup, min_lr_ratio=floor)
    expected = [2.0 * (step + 1) / warmup for step in range(warmup)]
    for length in each:
        expected += [
            2.0 * (floor + (1 - floor) * (1 + math.cos(math.pi * step / length)) / 2) for step in range(length)
        ]
    np.testing.assert_allclose(rates(warmup + sum(each), config), expected, atol=1e-12)


def test_cycles_that_do_not_divide_the_run_differ_by_a_step() -> None:
    found = rates(103, scheduled("warm_restarts", cycles=4, lr=1.0, warmup_steps=3))
    peaks = [step for step, rate in enumerate(found) if rate == 1.0]
    assert peaks == [2, 3, 28, 53, 78]  # the first is the last step of the warm-up
    odd = [
        step for step, rate in enumerate(rates(10, scheduled("warm_restarts", cycles=3, lr=1.0, warmup_steps=0)))
        if rate == 1.0
    ]  # fmt: skip
    assert odd == [0, 3, 7]


def test_where_the_cycles_begin_is_computed_once_a_run() -> None:
    config = scheduled("warm_restarts", cycles=1000, growth=1.001, lr=1.0, warmup_steps=0)
    schedules._bounds.cache_clear()
    lr_at(0, 20_000, config)
    rates(20_000, config)
    assert schedules._bounds.cache_info().misses == 1


def test_a_floor_of_one_is_a_constant_rate() -> None:
    assert set(rates(50, OptimConfig(lr=0.7, warmup_steps=0, min_lr_ratio=1.0))) == {0.7}
    assert set(rates(50, scheduled("constant", lr=0.7, warmup_steps=0))) == {0.7}


@pytest.mark.parametrize(
    ("name", "values", "sentence"),
    [
        ("cosin", {}, r"optim\.schedule: unknown name 'cosin'\. Did you mean 'cosine'"),
        ("linear", {"cycles": 3}, r"optim\.schedule 'linear': unknown option 'cycles'"),
        ("warm_restarts", {"cycles": 0}, r"cycles is 0: at least 1"),
        ("warm_restarts", {"growth": 0.0}, r"growth is 0\.0: give a number from 0\.01 to 100"),
        ("warm_restarts", {"growth": 1e308}, r"growth is 1e\+308: give a number from 0\.01 to 100"),
        ("warm_restarts", {"cycles": 20, "growth": 10.0}, r"growth 10 the first and the last of 20 cycles differ"),
        ("warm_restarts", {"cycles": 1000, "growth": 0.9}, r"growth 0\.9 the first and the last of 1000 cycles differ"),
        ("warm_restarts", {"cycles": 10**6}, r"cycles is 1000000: at most 1,000"),
        ("constant", {"min_lr_ratio": 0.1}, r"min_lr_ratio is 0\.1, but a constant rate does not fall"),
        ("cosine", {"min_lr_ratio": 1.1}, r"min_lr_ratio is 1\.1: give a number from 0 to 1"),
    ],
)
def test_impossible_schedules_are_named(name: str, values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        scheduled(name, **values)


def test_more_cycles_than_steps_are_refused_before_the_first_step() -> None:
    config = scheduled("warm_restarts", cycles=20, warmup_steps=5)
    with pytest.raises(ConfigError, match=r"the 10 steps after warm-up do not hold 20 cycles"):
        lr_at(0, 15, config)


@pytest.mark.parametrize(("steps", "said"), [(1, "0"), (6, "1"), (9, "1"), (10, "about 1"), (95, "about 9")])
def test_a_warm_up_that_is_too_long_is_told_a_length_that_fits(steps: int, said: str) -> None:
    with pytest.raises(ConfigError, match=f"Set it to {said}, or train for longer"):
        lr_at(0, steps, OptimConfig(warmup_steps=100))
