"""Runs of other optimizers and schedules go on to the bit; another optimizer than before is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gloo
import pytest
from training_runs import SMALL_TOWER, end_state, losses, recipe, train_worker

from trainer.guard.signals import REQUEUE_EXIT_CODE
from trainer.trackers.metrics_csv import read_metrics

CHANGES: dict[str, dict[str, Any]] = {
    "sgd": {
        "optimizer": {"name": "sgd", "nesterov": True}, "weight_decay": 1e-3,
        "schedule": {"name": "warm_restarts", "cycles": 3},
    },
    "lamb": {"optimizer": "lamb", "schedule": "linear", "min_lr_ratio": 0.5},
    "lion": {"optimizer": "lion", "lr": 1e-3, "schedule": "constant"},
}  # fmt: skip


def recipe_of(tmp_path: Path, name: str, changes: dict[str, Any]) -> dict[str, Any]:
    return recipe(tmp_path, run_dir=tmp_path / name, model={**SMALL_TOWER, "dropout": 0.3}, optim=changes)


@pytest.mark.parametrize("name", ["sgd", "lamb", pytest.param("lion", marks=pytest.mark.slow)])
def test_a_run_goes_on_to_the_bit_in_the_middle_of_its_schedule(tmp_path: Path, name: str) -> None:
    if name != "sgd":
        pytest.importorskip("timm")
    whole, broken = (recipe_of(tmp_path, run, CHANGES[name]) for run in ("whole", "broken"))
    assert gloo.run(1, train_worker, whole) == [0]
    assert gloo.run(1, train_worker, broken, 4) == [REQUEUE_EXIT_CODE]
    assert gloo.run(1, train_worker, broken) == [0]
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    assert end_state(tmp_path / "broken") == end_state(tmp_path / "whole")
    ours, theirs = (
        [row.metrics.get("train/lr_head") for row in read_metrics(tmp_path / run / "metrics.csv")]
        for run in ("broken", "whole")
    )
    assert ours == theirs


def test_another_optimizer_than_before_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    values = recipe_of(tmp_path, "run", {})
    assert gloo.run(1, train_worker, values, 4) == [REQUEUE_EXIT_CODE]
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    (said,) = gloo.run(1, train_worker, recipe_of(tmp_path, "run", CHANGES["sgd"]))
    assert "was trained with the optimizer adamw, this recipe's is sgd. Put optim.optimizer back." in said
    assert "start_from=" in said and "\n" not in said
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()} == before
