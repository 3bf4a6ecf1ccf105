"""Runs of every kind of state go on as if nothing had happened: queues, two views, labels with a sampler, averages.

Each is killed and stopped at a step, and started again: on the same number of processes it has the same bits, on
another number the same losses to rounding. No validation takes part, so that objectives without captions may.
"""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import gloo
import numpy as np
import pytest
import torch
from column_folders import add_column
from queue_objective import QUEUE, Queued, register_queue
from training_runs import SMALL_TOWER, end_state, last_checkpoint, losses, recipe, train_worker

from trainer.guard.signals import REQUEUE_EXIT_CODE
from trainer.run.run import Run

NUM_STEPS = 12
KINDS: dict[str, dict[str, Any]] = {
    "queue": {"objective": {"name": "queued", "length": 12}},
    "two views": {"objective": {"name": "nt_xent", "temperature": 0.5}, "accumulate": 2},
    "labels": {
        "objective": {"name": "supcon", "views": 2},
        "data": {
            "columns": {"label": "labels.kind"},
            "sampler": {"name": "class_balanced", "num_classes": 4, "num_per_class": 2, "column": "labels.kind"},
        },
    },
}
WORST = {"queue": 1e-6, "two views": 1e-6, "labels": 1e-6}  # of losses of order 1


def recipe_of(tmp_path: Path, kind: str, name: str, dropout: float = 0.0) -> dict[str, Any]:
    """A run of the kind, its weights averaged."""
    changes = KINDS[kind]
    data = {**changes.get("data", {}), "val": []}
    model, optim = {**SMALL_TOWER, "dropout": dropout}, {"ema_decay": 0.9}
    values = recipe(tmp_path, run_dir=tmp_path / name, **{**changes, "data": data, "model": model, "optim": optim})
    if kind == "labels" and not (tmp_path / "train" / "columns").exists():
        labels = np.random.default_rng(0).integers(-1, 5, 50).astype("<i4")
        add_column(str(tmp_path / "train"), "labels.kind", labels, classes=tuple("abcde"))
    return values


def prepare(stop_at: int | None = None, crash_at: int | None = None) -> None:
    """Plant: the queue is known, and rank 0 is told to stop after a step, or every rank fails in one."""
    register_queue()
    count = Run.count

    def count_and_end(run: Run, step: int, *rest: Any) -> None:
        if step == crash_at:
            raise ZeroDivisionError
        count(run, step, *rest)
        if step == stop_at and torch.distributed.get_rank() == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    Run.count = count_and_end  # type: ignore[method-assign]


def train(world_size: int, values: dict[str, Any], **end: int) -> None:
    """To the end, or to where it is stopped or fails."""
    results = gloo.run(world_size, train_worker, values, None, None, partial(prepare, **end))
    expected = REQUEUE_EXIT_CODE if "stop_at" in end else "crashed" if "crash_at" in end else 0
    assert results == [expected] * world_size


@pytest.mark.parametrize("world_size", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_killed_and_stopped_runs_of_every_kind_end_with_the_same_bits(
    tmp_path: Path, kind: str, world_size: int
) -> None:
    whole, broken = (recipe_of(tmp_path, kind, name, dropout=0.3) for name in ("whole", "broken"))
    train(world_size, whole)
    train(world_size, broken, stop_at=3)
    train(world_size, broken, crash_at=10)  # two steps after a checkpoint
    train(world_size, broken)
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "whole")) == NUM_STEPS
    assert end_state(tmp_path / "broken") == end_state(tmp_path / "whole")


# One in the usual suite: each is three runs of up to two processes.
MOVED = [kind if number == 0 else pytest.param(kind, marks=pytest.mark.slow) for number, kind in enumerate(KINDS)]


@pytest.mark.parametrize("kind", MOVED)
def test_runs_of_every_kind_move_between_numbers_of_processes(tmp_path: Path, kind: str) -> None:
    alone, moving = (recipe_of(tmp_path, kind, name) for name in ("alone", "moving"))
    train(1, alone)
    train(2, moving, stop_at=3)
    train(1, moving, stop_at=8)
    train(2, moving)
    ours, theirs = losses(tmp_path / "moving"), losses(tmp_path / "alone")
    assert ours.keys() == theirs.keys() == set(range(1, NUM_STEPS + 1))
    worst = max(abs(float(ours[step]) / float(theirs[step]) - 1) for step in ours)
    print(f"{kind}: losses within {worst:.1e} of one process")
    assert worst <= WORST[kind]
    averaged = [last_checkpoint(tmp_path / name).parts["ema"] for name in ("moving", "alone")]
    for name, tensor in averaged[0].items():
        torch.testing.assert_close(tensor, averaged[1][name], atol=1e-5, rtol=1e-5)


def test_a_queue_is_a_part_of_the_objective_alone(tmp_path: Path) -> None:
    values = recipe_of(tmp_path, "queue", "run")
    train(2, values, stop_at=3)
    first = last_checkpoint(tmp_path / "run")
    train(2, values)
    last = last_checkpoint(tmp_path / "run")
    for checkpoint in (first, last):
        assert checkpoint.parts["objective"].keys() == {"logit_scale", QUEUE}
        # What is averaged is all that the wrapped module holds, its buffers too.
        assert not any(QUEUE in name for part in ("encoder", "ema") for name in checkpoint.parts[part])
        queue = checkpoint.parts["objective"][QUEUE]
        assert queue.shape == (12, 8) and torch.allclose(queue.norm(dim=1), torch.ones(12))
    assert not torch.equal(first.parts["objective"][QUEUE], last.parts["objective"][QUEUE])


def forget_the_queue() -> None:
    """Plant: it is saved, but not put back."""
    prepare()
    import trainer.run.opening as opening

    restore = opening.restore

    def restore_all_else(holders: Any, *rest: Any) -> None:
        queue = holders.objective_state[QUEUE]
        restore(holders, *rest)
        holders.objective_state[QUEUE] = queue

    opening.restore = restore_all_else


def test_a_queue_that_is_not_put_back_is_noticed(tmp_path: Path) -> None:
    whole, broken = (recipe_of(tmp_path, "queue", name) for name in ("whole", "broken"))
    train(1, whole)
    train(1, broken, stop_at=3)
    first_after = last_checkpoint(tmp_path / "broken").step + 1
    assert gloo.run(1, train_worker, broken, None, None, forget_the_queue) == [0]
    ours, theirs = losses(tmp_path / "broken"), losses(tmp_path / "whole")
    assert min(step for step in ours if ours[step] != theirs[step]) == first_after


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"objective": "infonce"}, "objective is queued, infonce is needed"),
        ({"objective": {"name": "queued", "length": 5}}, "the objective's 'queue' is (12, 8), this recipe's is (5, 8)"),
    ],
)
def test_a_queue_of_another_objective_or_length_is_refused(
    tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    values = recipe_of(tmp_path, "queue", "run")
    train(1, values, stop_at=3)
    (said,) = gloo.run(1, train_worker, {**values, **change}, None, None, prepare)
    assert isinstance(said, str) and sentence in said and "\n" not in said, said


def test_a_tested_queue_is_the_obvious_one() -> None:
    batches = [torch.full((2, 3), float(number)) for number in range(1, 4)]
    objective, state = Queued(length=5), Queued(length=5).initial_state(3)
    for batch in batches:
        state = objective.next_state(_rows(batch), state)
    assert state[QUEUE][:, 0].tolist() == [3, 3, 2, 2, 1]


def _rows(images: torch.Tensor) -> Any:
    from trainer.objectives.objective import IMAGE, Rows

    return Rows({IMAGE: images}, {IMAGE: images}, 0)
