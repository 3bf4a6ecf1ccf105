"""Runs of quick steps that would go on for ever, for something to happen to them at a step."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from training_runs import SMALL_TOWER, recipe

FOR_EVER = 10**6  # steps: no run may end before what is done to it


def run_recipe(folder: Path, peer_timeout_s: float, steps: int = FOR_EVER) -> dict[str, Any]:
    """A run of quick steps without validation, whose loader has a worker: it inherits what must not keep lines open."""
    epochs = {"epochs": FOR_EVER, "max_steps": steps, "eval_every": FOR_EVER, "checkpoint_every": 50}
    reading = {"num_workers": 1, "val": []}
    return recipe(folder, data=reading, peer_timeout_s=peer_timeout_s, model=SMALL_TOWER, **epochs)


def command_recipe(folder: Path, peer_timeout_s: float, steps: int = FOR_EVER) -> dict[str, Any]:
    """The same, of a tower that a command knows."""
    model = {"tower": "resnet18", "freeze": "tower", "hidden_dim": 16}
    return run_recipe(folder, peer_timeout_s, steps) | {"model": model}


def wait_for_step(folder: Path, step: int) -> None:
    """Until `step` steps are in metrics.csv, after its header."""
    metrics, deadline = folder / "run/metrics.csv", time.monotonic() + 240
    while not metrics.exists() or metrics.read_text().count("\n") < step + 1:
        assert time.monotonic() < deadline, "the run does not get there"
        time.sleep(0.01)
