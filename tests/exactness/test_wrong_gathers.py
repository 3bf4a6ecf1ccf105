"""A planted wrong gather, of every kind of the field, stops a real run before its first step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gloo
import pytest
from training_runs import SMALL_TOWER, losses, recipe, train_worker
from wrong_gathers import WRONG_GATHERS


def run_and_count_steps(values: dict[str, Any], plant: Callable[[], None] | None) -> tuple[int | str, int]:
    """How a run ended, and how many steps of the optimizer were made."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    steps = 0

    def count(*arguments: Any) -> None:
        nonlocal steps
        steps += 1

    register_optimizer_step_post_hook(count)
    return train_worker(values, plant=plant), steps


@pytest.mark.parametrize("plant", WRONG_GATHERS, ids=lambda plant: plant.__name__)
@pytest.mark.parametrize("accumulate", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_wrong_gather_stops_a_run_before_step_1(tmp_path: Path, plant: Callable[[], None], accumulate: int) -> None:
    values = recipe(tmp_path, epochs=1, model=SMALL_TOWER, accumulate=accumulate)
    (sentence, steps), *others = gloo.run(2, run_and_count_steps, values, plant)
    assert isinstance(sentence, str) and sentence.startswith("gradient proof: the gradient of 'tower' has ")
    assert "Repair the gather or the step before training." in sentence
    assert steps == 0 and others == [(sentence, 0)]
    assert not list((tmp_path / "run").glob("checkpoints/*")) and not (tmp_path / "run" / "metrics.csv").exists()


def test_the_same_run_without_a_defect_takes_its_steps(tmp_path: Path) -> None:
    values = recipe(tmp_path, epochs=1, model=SMALL_TOWER)
    assert gloo.run(2, run_and_count_steps, values, None) == [(0, 6), (0, 6)]
    assert len(losses(tmp_path / "run")) == 6
