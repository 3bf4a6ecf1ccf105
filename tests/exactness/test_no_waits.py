"""No step waits for the device: the real step of every objective, traced on the CPU as if it ran on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from column_folders import add_column
from device_trace import traced
from gloo import run
from queue_objective import register_queue
from training_runs import SMALL_TOWER, recipe, train_worker

HEAVY = {"jitter": 0.8, "grayscale": 0.2, "blur": 0.5}
AVERAGED = {"optim": {"ema_decay": 0.9}}
CHANGES: dict[str, dict[str, Any]] = {
    "infonce": {},
    "infonce, heavy augmentation, averaged": {"augment": HEAVY, **AVERAGED},
    "infonce, in pieces, averaged": {"accumulate": 2, "augment": HEAVY, **AVERAGED},
    "infonce, all captions": {"objective": {"name": "infonce", "captions": "all"}},
    "siglip": {"objective": {"name": "siglip"}, "augment": {"jitter": 1.0}},
    "nt_xent": {"objective": {"name": "nt_xent"}, "augment": HEAVY, "data": {"val": []}},
    "supcon": {
        "objective": {"name": "supcon", "views": 2}, **AVERAGED,
        "data": {"val": [], "columns": {"label": "labels.kind"}},
    },
    "a queue": {"objective": {"name": "queued", "length": 12}, "data": {"val": []}, **AVERAGED},
    "without augmentation": {"augment": {"crop_scale": (1, 1), "flip": 0.0}},
    "sgd, thawing": {
        "model": {**SMALL_TOWER, "freeze": "tower", "thaw": {"2": "stem", "4": "nothing"}},
        "optim": {"optimizer": {"name": "sgd", "nesterov": True}, "weight_decay": 1e-4, "ema_decay": 0.9},
    },
    "batch norms": {"model": {"tower": "shufflenet_v2_x0_5", "freeze": "nothing"}, "image_size": 64, **AVERAGED},
}  # fmt: skip
IN_TWO_PROCESSES = ("infonce, in pieces, averaged", "a queue", "sgd, thawing", "batch norms")


def _read_the_loss(result: Any) -> None:
    result.loss.item()


def _look_at_the_loss(result: Any) -> None:
    result.loss.numpy()


def _copy_from_pageable_memory(result: Any) -> None:
    torch.ones(8).to(result.loss.device)


def _mix(result: Any) -> None:
    result.rows.own["image"] * torch.ones(1, 8)


def _choose_by_value(result: Any) -> None:
    result.rows.own["image"][result.rows.own["image"] > 0]


PLANTS = {
    "_local_scalar_dense": _read_the_loss, ".numpy()": _look_at_the_loss,
    ".to(device)": _copy_from_pageable_memory, "aten.mul": _mix, "index": _choose_by_value,
}  # fmt: skip


def traced_run(values: dict[str, Any], plant: str | None = None) -> tuple[int | str, list[str], int]:
    """In one process of a group: the exit code, what was red, and how much was seen."""
    from trainer.run.run import Run

    register_queue()
    with traced() as trace:
        if plant is not None:
            count = Run.count

            def count_and_wait(run: Run, step: int, batch: Any, result: Any, grad_norm: Any) -> None:
                PLANTS[plant](result)
                count(run, step, batch, result, grad_norm)

            Run.count = count_and_wait  # type: ignore[method-assign]
        code = train_worker(values)
    return code, sorted(set(trace.reds)), trace.num_operations


def recipe_of(tmp_path: Path, change: str) -> dict[str, Any]:
    changes = CHANGES[change]
    optim = {"fused": True, **changes.get("optim", {})}
    values = recipe(tmp_path, **{"model": SMALL_TOWER, "epochs": 1, "log_every": 3, **changes, "optim": optim})
    if "columns" in values["data"]:
        labels = np.random.default_rng(0).integers(-1, 5, 50).astype("<i4")
        add_column(str(tmp_path / "train"), "labels.kind", labels, classes=tuple("abcde"))
    return values


@pytest.mark.parametrize(
    ("change", "world_size"), [*((name, 1) for name in CHANGES), *((name, 2) for name in IN_TWO_PROCESSES)]
)
def test_no_step_makes_the_host_wait(tmp_path: Path, change: str, world_size: int) -> None:
    for code, reds, num_operations in run(world_size, traced_run, recipe_of(tmp_path, change)):
        assert code == 0
        assert not reds, "\n".join(reds)
        assert num_operations > 100


@pytest.mark.parametrize("words", PLANTS)
def test_a_planted_wait_turns_it_red(tmp_path: Path, words: str) -> None:
    ((code, reds, _),) = run(1, traced_run, {**recipe_of(tmp_path, "infonce"), "max_steps": 3}, words)
    assert code == 0
    assert any(words in red for red in reds), reds
