"""Another recipe from an older checkpoint, end to end: two runs in wandb, each with its own curve, offline too."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from gloo import run
from training_runs import SMALL_TOWER, recipe, train_worker


def wandb_runs(run_dir: Path) -> dict[str, dict[str, Any]]:
    """By run id: name, config and the loss of each step, as wandb's own reader gives them."""
    runs = {}
    for folder in (run_dir / "wandb").glob("offline-run-*"):
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
        lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
        records = [json.loads(line) for line in lines]
        (about,) = [r["run"] for r in records if r["type"] == "run"]
        update = about["config"]["update"]
        pairs = (
            update.items() if isinstance(update, dict) else [(u["key"], json.loads(u["value_json"])) for u in update]
        )
        items = [r["history"]["item"] for r in records if r["type"] == "history"]
        losses = {item["_step"]: item["train/loss"] for item in items if "train/loss" in item}
        runs[about["run_id"]] = {"name": about["display_name"], "config": dict(pairs), "losses": losses}
    return runs


def test_the_old_curve_is_never_shown_for_the_new_run(tmp_path: Path) -> None:
    values = recipe(tmp_path, model=SMALL_TOWER, data={"val": []}, tracking={"wandb": "offline"})
    assert run(1, train_worker, values) == [0]
    first = json.loads((tmp_path / "run" / "run.json").read_text())["run_id"]
    older = tmp_path / "run" / "checkpoints" / "step-00000004"
    changed = {**values, "resume": str(older), "optim": {**values["optim"], "lr": 0.003}}
    shutil.copytree(tmp_path / "run" / "wandb", tmp_path / "before")
    assert run(1, train_worker, changed) == [0]

    runs = wandb_runs(tmp_path / "run")
    (second,) = runs.keys() - {first}
    assert runs[first]["losses"].keys() == runs[second]["losses"].keys() == set(range(1, 13))
    for step in range(1, 13):
        # The step after the checkpoint starts from its weights; its loss is the last that both have alike.
        assert (runs[first]["losses"][step] == runs[second]["losses"][step]) == (step <= 5), step
    assert runs[second]["config"]["continues"] == {"run_id": first, "step": 4}
    assert "continues" not in runs[first]["config"]
    assert (runs[first]["name"], runs[second]["name"]) == ("run", "run from step 4")
