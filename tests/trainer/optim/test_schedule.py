"""The learning rate over a run."""

from __future__ import annotations

import math

import pytest

from core.errors import ConfigError
from trainer.optim.build import OptimConfig
from trainer.optim.schedule import lr_at

CONFIG = OptimConfig(lr=2.0, warmup_steps=10, min_lr_ratio=0.1)


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
    with pytest.raises(ConfigError, match=r"warmup_steps is 500, but the run has 200 steps.*about 20"):
        lr_at(0, 200, OptimConfig())
