"""Whether a resumed training ends with the weights of an unbroken one, and how long saving holds a training up."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks.gpu.measure import Context, Figures, Skipped
from benchmarks.gpu.training import recipe, train

_STEPS, _SAVED_AT = 8, 4
_PAUSE_STEPS, _SAVED_EVERY = 20, 5


def resumed(context: Context) -> Figures:
    """An unbroken run, one that goes on from its middle, and a second unbroken one: what chance alone changes."""
    first = _unbroken(context, "unbroken", {})
    again = _unbroken(context, "again", {})
    return {
        **_differences("resumed", first, _gone_on(context, first, {})),
        **_differences("again", first, again),
    }


def resumed_deterministic(context: Context) -> Figures:
    """The same with `deterministic`, where nothing is left to chance."""
    from trainer.config import TrainConfig

    if "deterministic" not in {field.name for field in fields(TrainConfig)}:
        raise Skipped("recipes of this tree know no `deterministic`")
    changes = {"deterministic": True}
    first = _unbroken(context, "unbroken", changes)
    return _differences("resumed", first, _gone_on(context, first, changes))


def checkpoint_pause(context: Context) -> Figures:
    """Time that steps which end with a checkpoint take longer than others, from the run's own lines."""
    from trainer.telemetry import names
    from trainer.trackers.metrics_csv import METRICS, read_metrics

    changes = {"log_every": 1, "checkpoint_every": _SAVED_EVERY, "model": {"compile": False}}
    values = recipe(context, context.work / "run", context.size.batch_sizes[0], _PAUSE_STEPS, **changes)
    rows = read_metrics(train(context, "pause", values) / METRICS)
    # A line is written before the checkpoint of its step: what lies between two lines and is no step is the saving.
    between = {
        before.step: after.time - before.time - float(after.metrics[names.STEP_S]) for before, after in pairwise(rows)
    }
    plain = median(seconds for step, seconds in between.items() if step % _SAVED_EVERY)
    pauses = [seconds - plain for step, seconds in between.items() if step % _SAVED_EVERY == 0]
    step_s = median(float(row.metrics[names.STEP_S]) for row in rows[_SAVED_EVERY:])
    saved = max((context.work / "run" / "checkpoints").glob("step-*"))
    return {
        "checkpoints": len(pauses),
        "mean_pause_s": fmean(pauses),
        "longest_pause_s": max(pauses),
        "step_s": step_s,
        "checkpoint_mb": sum(path.stat().st_size for path in saved.iterdir()) / 1e6,
    }


def _unbroken(context: Context, name: str, changes: dict[str, Any]) -> Path:
    return train(context, name, _recipe(context, context.work / name, changes))


def _gone_on(context: Context, first: Path, changes: dict[str, Any]) -> Path:
    """A copy of the run that goes on from the checkpoint of its middle."""
    folder = context.work / "gone_on"
    shutil.copytree(first, folder)
    middle = folder / "checkpoints" / f"step-{_SAVED_AT:08d}"
    return train(context, "gone_on", _recipe(context, folder, {**changes, "resume": str(middle)}))


def _recipe(context: Context, run_dir: Path, changes: dict[str, Any]) -> dict[str, Any]:
    changes = {"checkpoint_every": _SAVED_AT, "model": {"compile": False}, **changes}
    return recipe(context, run_dir, context.size.batch_sizes[0], _STEPS, **changes)


def _differences(name: str, first: Path, second: Path) -> Figures:
    """Of the last checkpoints: how many tensors differ in a bit, and how far weights lie apart on average."""
    import torch

    pairs = list(zip(_tensors(first), _tensors(second), strict=True))
    assert all(one[0] == other[0] for one, other in pairs), "the checkpoints hold other tensors"
    differ = sum(not torch.equal(one[1], other[1]) for one, other in pairs)
    apart = [(one[1].double() - other[1].double()).abs() for one, other in pairs if one[1].is_floating_point()]
    return {
        "tensors": len(pairs),
        f"{name}_differ": differ,
        f"{name}_mean_difference": float(sum(x.sum() for x in apart)) / sum(x.numel() for x in apart),
    }


def _tensors(run_dir: Path) -> Iterator[tuple[str, Any]]:
    from trainer.checkpoint.folder import latest_checkpoint, load_checkpoint

    path = latest_checkpoint(run_dir / "checkpoints")
    assert path is not None and path.name == f"step-{_STEPS:08d}", f"{run_dir} was not trained to its end"
    checkpoint = load_checkpoint(path)
    for part, tensors in sorted(checkpoint.parts.items()):
        for name, tensor in sorted(tensors.items()):
            yield f"{part}: {name}", tensor
    for number, moments in sorted(checkpoint.optimizer_state["state"].items()):
        for name, value in sorted(moments.items()):
            yield f"optimizer: {number} {name}", value
