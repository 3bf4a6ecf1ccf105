"""Stopped, crashed and moved to another number of processes, a run goes on as if nothing had happened."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import gloo
import pytest
from training_runs import (
    NOISY,
    NUM_SAMPLES,
    SMALL_TOWER,
    STEPS_PER_EPOCH,
    end_state,
    losses,
    recipe,
    record_samples,
    recorded_steps,
    train_worker,
)

from core.config import Choice
from core.shard_set import ShardSet
from trainer.data.loader import TrainLoader
from trainer.guard.signals import REQUEUE_EXIT_CODE
from trainer.run.folder import read_events


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_resumed_run_equals_an_unbroken_one(tmp_path: Path, world_size: int) -> None:
    whole = recipe(tmp_path, run_dir=tmp_path / "whole", **NOISY)
    broken = recipe(tmp_path, run_dir=tmp_path / "broken", **NOISY)
    assert gloo.run(world_size, train_worker, whole) == [0] * world_size
    assert gloo.run(world_size, train_worker, broken, 4) == [REQUEUE_EXIT_CODE] * world_size  # SIGTERM at step 4
    assert gloo.run(world_size, train_worker, broken, None, 8) == ["crashed"] * world_size  # between checkpoints
    assert gloo.run(world_size, train_worker, broken) == [0] * world_size
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    assert set(losses(tmp_path / "whole")) == set(range(1, 2 * STEPS_PER_EPOCH + 1))
    assert end_state(tmp_path / "broken") == end_state(tmp_path / "whole")


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_same_run_twice_has_the_same_bits(tmp_path: Path, world_size: int) -> None:
    names = ("one", "other")
    for name in names:
        values = recipe(tmp_path, run_dir=tmp_path / name, epochs=1, **NOISY)
        assert gloo.run(world_size, train_worker, values) == [0] * world_size
    one, other = (tmp_path / name for name in names)
    assert losses(one) == losses(other)
    assert end_state(one) == end_state(other)


MOVES = [
    ((1, 2, 4), (0, 0)),
    pytest.param((4, 1, 2), (0, 0), marks=pytest.mark.slow),
    pytest.param((2, 4, 1), (2, 3), marks=pytest.mark.slow),
    pytest.param((1, 2, 4), (1, 0), marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("world_sizes", "reading"), MOVES)
def test_a_run_that_moves_between_numbers_of_processes_trains_on_the_same_batches(
    tmp_path: Path, world_sizes: tuple[int, int, int], reading: tuple[int, int]
) -> None:
    data = {"num_workers": reading[0], "sampler": {"name": "uniform", "window_shards": reading[1]}}
    alone = recipe(tmp_path, run_dir=tmp_path / "alone", epochs=3, model=SMALL_TOWER, data=data)
    moving = recipe(tmp_path, run_dir=tmp_path / "moving", epochs=3, model=SMALL_TOWER, data=data)
    first, second, third = world_sizes
    record_alone, record_moving = (partial(record_samples, tmp_path / f"samples-{n}") for n in ("alone", "moving"))
    assert gloo.run(1, train_worker, alone, None, None, record_alone) == [0]
    stopped = [REQUEUE_EXIT_CODE] * first
    assert gloo.run(first, train_worker, moving, 4, None, record_moving) == stopped  # in the first epoch
    stopped = [REQUEUE_EXIT_CODE] * second
    assert gloo.run(second, train_worker, moving, 8, None, record_moving) == stopped  # in the second
    assert gloo.run(third, train_worker, moving, None, None, record_moving) == [0] * third

    continued = [event for event in read_events(tmp_path / "moving") if event["event"] == "continued"]
    assert len(continued) == 2
    steps = recorded_steps(tmp_path / "samples-moving")
    assert steps == recorded_steps(tmp_path / "samples-alone") == declared_steps(alone)
    assert covered_epochs(tmp_path / "moving") == covered_epochs(tmp_path / "alone")
    worst = worst_difference(tmp_path / "moving", tmp_path / "alone")
    print(f"{world_sizes} processes: losses within {worst:.1e} of one process")
    assert worst <= 1e-5


def declared_steps(values: dict[str, Any]) -> dict[tuple[int, int], list[int]]:
    """Positions `[t * G, (t + 1) * G)` of each epoch's order."""
    batch = values["global_batch_size"]
    shards = ShardSet.open((values["data"]["train"],))
    sampler = Choice("uniform", {"window_shards": values["data"]["sampler"]["window_shards"]})
    loader = TrainLoader(shards, global_batch_size=batch, sampler=sampler)
    orders = [loader.order(epoch).tolist() for epoch in range(values["epochs"])]
    loader.close()
    return {
        (epoch, step): order[step * batch : (step + 1) * batch]
        for epoch, order in enumerate(orders)
        for step in range(STEPS_PER_EPOCH)
    }


def covered_epochs(run_dir: Path) -> list[dict[str, Any]]:
    """The ledger's account of each epoch; nothing missed or repeated."""
    epochs = [event for event in read_events(run_dir) if event["event"] == "epoch covered"]
    assert [epoch["missed"] + epoch["repeated"] for epoch in epochs] == [0] * 3
    assert [epoch["dropped"] for epoch in epochs] == [NUM_SAMPLES % 8] * 3
    return [{name: value for name, value in epoch.items() if name != "time"} for epoch in epochs]


def worst_difference(run_dir: Path, other: Path) -> float:
    """Of the losses of any step; the losses themselves are of order 1."""
    ours, theirs = losses(run_dir), losses(other)
    assert ours.keys() == theirs.keys() == set(range(1, 3 * STEPS_PER_EPOCH + 1))
    return max(abs(float(ours[step]) - float(theirs[step])) for step in ours)


def skip_a_batch_after_resume() -> None:
    real = TrainLoader.epoch
    TrainLoader.epoch = lambda self, epoch, start_step=0: real(self, epoch, start_step + bool(start_step))  # type: ignore[method-assign, assignment]


def test_a_loader_that_resumes_one_step_late_is_caught(tmp_path: Path) -> None:
    values = recipe(tmp_path, model=SMALL_TOWER)
    assert gloo.run(1, train_worker, values, 4) == [REQUEUE_EXIT_CODE]
    with pytest.raises(RuntimeError, match="batch of epoch 1 in the ledger of epoch 0"):
        gloo.run(1, train_worker, values, None, None, skip_a_batch_after_resume)
