"""Real trainings for the measurements: the product's own `launch.train` on a recipe, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from benchmarks.gpu.measure import Context, Figures
from benchmarks.measure import ROOT
from benchmarks.run_figures import speed_of

WINDOWS = 6  # log lines of a timed training; two of them to warm up
HEAVY = {
    "crop_scale": [0.2, 1.0], "flip": 0.5, "jitter": 0.8, "grayscale": 0.2, "blur": 0.5,
}  # SimCLR's augmentation  # fmt: skip


def recipe(context: Context, run_dir: Path, batch_size: int, steps: int, **changes: Any) -> dict[str, Any]:
    """A training recipe; dicts among `changes` are merged, everything else is replaced."""
    on_gpu = context.device == "cuda"
    values: dict[str, Any] = {
        "run_dir": str(run_dir),
        "data": {"train": str(context.shards), "num_workers": num_workers()},
        "global_batch_size": batch_size,
        "epochs": 100_000,
        "max_steps": steps,
        "image_size": context.size.image_size,
        "precision": "bf16" if on_gpu else "no",
        "model": {"tower": context.size.tower, "compile": on_gpu and context.size.name == "full"},
        "augment": {"crop_scale": [0.9, 1.0], "flip": 0.0},  # open_clip's
        "optim": {"warmup_steps": 0},
        "log_every": max(1, steps // WINDOWS),
        "checkpoint_every": steps,
        "tracking": {"wandb": "disabled"},
    }
    for name, value in changes.items():
        values[name] = {**values[name], **value} if isinstance(value, dict) else value
    return values


def train(context: Context, name: str, values: dict[str, Any]) -> Path:
    """Train the recipe to its end; returns the run folder.

    Raises:
        subprocess.CalledProcessError: it did not end well; the log says why.
    """
    path = context.work / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    print(f"--- {name}", flush=True)
    command = [sys.executable, "-m", "launch.train", str(path)]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    return Path(values["run_dir"])


def timed(context: Context, name: str, batch_size: int, **changes: Any) -> Figures:
    """Speed of a training in `work / name` over the size's number of images, after the first third of it."""
    steps = context.size.images // batch_size
    values = recipe(context, context.work / name, batch_size, steps, **changes)
    run_dir = train(context, name, values)
    return {"batch_size": batch_size, **speed_of(run_dir, 2 * values["log_every"])}


def num_workers() -> int:
    """Loader processes: two cores are left to the trainer, and twelve workers feed any GPU."""
    return max(1, min(12, len(os.sched_getaffinity(0)) - 2))
