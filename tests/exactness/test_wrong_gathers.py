"""A wrong gather, step, objective or state, of every kind of the field, stops a real run before its first step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gloo
import numpy as np
import pytest
from column_folders import add_column
from training_runs import NUM_SAMPLES, SMALL_TOWER, losses, recipe, train_worker
from wrong_gathers import WRONG_GATHERS
from wrong_steps import (
    averaged_queue,
    divided_by_the_chunks,
    dropped_scalar,
    ignored_ids,
    ignored_labels,
    right_queue,
    wrong_ids,
)

WRONG_STEPS = {  # plant -> how the sentence opens, and what it says
    wrong_ids: ("gradient proof: the gradient of 'tower' has ", "Repair the gather or the step before training."),
    ignored_ids: ("objective proof: InfoNCE asks for 'image_id' and gives the same loss", "does not use it"),
    ignored_labels: ("objective proof: SupCon asks for 'label' and gives the same loss", "does not use it"),
    dropped_scalar: ("gradient proof: the gradient of 'logit_scale' has 0 times", "no gradient arrives at all"),
    divided_by_the_chunks: ("gradient proof: the gradient of 'tower' has 0.5 times", "divided by the number of chunks"),
    averaged_queue: ("objective proof: after a step the state 'queue' differs", "averaged over processes"),
}


def run_and_count_steps(values: dict[str, Any], plant: Callable[[], None] | None) -> tuple[int | str, int]:
    """How a run ended, and how many steps of the optimizer were made."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    steps = 0

    def count(*arguments: Any) -> None:
        nonlocal steps
        steps += 1

    register_optimizer_step_post_hook(count)
    return train_worker(values, plant=plant), steps


def of_labels(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    """A recipe of pictures and labels, without captions."""
    values = recipe(tmp_path, epochs=1, model=SMALL_TOWER, objective="supcon", **changes)
    add_column(str(tmp_path / "train"), "labels", np.arange(NUM_SAMPLES, dtype="<i8") % 5, classes=tuple("abcde"))
    values["data"] = {**values["data"], "val": [], "columns": {"label": "labels"}}
    return values


def recipe_for(plant: Callable[[], None], tmp_path: Path) -> dict[str, Any]:
    if plant is ignored_labels:
        return of_labels(tmp_path)
    values = recipe(tmp_path, epochs=1, model=SMALL_TOWER, accumulate=2 if plant is divided_by_the_chunks else 1)
    if plant in (averaged_queue, right_queue):
        values["objective"], values["data"] = "queue", {**values["data"], "val": []}
    return values


def expect_no_step(results: list[tuple[int | str, int]], run_dir: Path) -> str:
    """Every rank ended with the same sentence and before step 1; returns it."""
    (sentence, steps), *others = results
    assert isinstance(sentence, str), f"trained, and ended with {sentence}"
    assert steps == 0 and others == [(sentence, 0)]
    assert not list(run_dir.glob("checkpoints/*")) and not (run_dir / "metrics.csv").exists()
    return sentence


@pytest.mark.parametrize("plant", WRONG_GATHERS, ids=lambda plant: plant.__name__)
@pytest.mark.parametrize("accumulate", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_wrong_gather_stops_a_run_before_step_1(tmp_path: Path, plant: Callable[[], None], accumulate: int) -> None:
    values = recipe(tmp_path, epochs=1, model=SMALL_TOWER, accumulate=accumulate)
    sentence = expect_no_step(gloo.run(2, run_and_count_steps, values, plant), tmp_path / "run")
    assert sentence.startswith("gradient proof: the gradient of 'tower' has ")
    assert "Repair the gather or the step before training." in sentence


@pytest.mark.parametrize("plant", WRONG_STEPS, ids=lambda plant: plant.__name__)
def test_a_wrong_step_or_objective_stops_a_run_before_step_1(tmp_path: Path, plant: Callable[[], None]) -> None:
    opening, cause = WRONG_STEPS[plant]
    values = recipe_for(plant, tmp_path)
    sentence = expect_no_step(gloo.run(2, run_and_count_steps, values, plant), tmp_path / "run")
    assert sentence.startswith(opening) and cause in sentence, sentence


@pytest.mark.parametrize("objective", ["infonce", "supcon", "queue"])
def test_the_same_runs_without_a_defect_take_their_steps(tmp_path: Path, objective: str) -> None:
    plant = right_queue if objective == "queue" else None
    values = of_labels(tmp_path) if objective == "supcon" else recipe_for(plant or wrong_ids, tmp_path)
    assert gloo.run(2, run_and_count_steps, values, plant) == [(0, 6), (0, 6)]
    assert len(losses(tmp_path / "run")) == 6
