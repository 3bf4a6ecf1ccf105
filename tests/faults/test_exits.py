"""A run of two processes that ends well ends with exit code 0, each time: none aborts after all is done.

Left to the interpreter's end, the process group's threads now and then outlived what they needed: twice in thirty
launches a process ended with SIGABRT (code 134) behind a finished run.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from training_runs import recipe

from core.config import dump_yaml, from_mapping
from trainer.config import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
NUM_LAUNCHES = 40


@pytest.mark.faults
@pytest.mark.timeout(4 * 3600)
def test_no_finished_run_aborts(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    values = recipe(tmp_path, max_steps=2, epochs=1, optim={"warmup_steps": 1}, data={"val": [], "num_workers": 1})
    path.write_text(dump_yaml(from_mapping(TrainConfig, values, "test")))
    codes: Counter[int] = Counter()
    for launch in range(NUM_LAUNCHES):
        command = [sys.executable, "-m", "launch.cli", "train", str(path), "--processes", "2"]
        done = subprocess.run(
            [*command, f"run_dir={tmp_path / str(launch)}"],
            capture_output=True,
            text=True,
            env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        )
        codes[done.returncode] += 1
        if done.returncode:
            print(f"launch {launch}: {done.returncode}\n{done.stderr}")
        print(f"{launch + 1} launches, exit codes {dict(codes)}", flush=True)
    assert codes == {0: NUM_LAUNCHES}
