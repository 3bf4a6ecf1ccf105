"""Thawing in the real run: what is frozen stays to the bit, what is thawed trains, and a resumed run is the same."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import gloo
import pytest
import torch
from torch import Tensor
from training_runs import NOISY, SMALL_TOWER, end_state, losses, recipe, train_worker

from trainer.checkpoint.folder import load_checkpoint
from trainer.guard.signals import REQUEUE_EXIT_CODE
from trainer.run.folder import read_events
from trainer.trackers.metrics_csv import read_metrics

TOWER = "image_encoder.tower."
# Of 12 steps; the shufflenet's batch norms and dropout, with accumulation and averages.
STAGED: dict[str, Any] = {
    **NOISY,
    "model": {**NOISY["model"], "freeze": "tower", "thaw": {"3": "stage3", "6": "conv1", "9": "nothing"}},
}
TRAINED: dict[int, set[str]] = {
    0: set(),
    3: {"stage4", "conv5"},
    6: {"stage2", "stage3", "stage4", "conv5"},
    9: {"conv1", "stage2", "stage3", "stage4", "conv5"},
}
SMALL = {"model": {**SMALL_TOWER, "freeze": "tower", "thaw": {"25%": "stem", "50%": "nothing"}}}


@pytest.mark.parametrize("world_size", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_that_is_stopped_between_two_thaws_goes_on_to_the_bit(tmp_path: Path, world_size: int) -> None:
    whole = recipe(tmp_path, run_dir=tmp_path / "whole", **STAGED)
    broken = recipe(tmp_path, run_dir=tmp_path / "broken", **STAGED)
    assert gloo.run(world_size, train_worker, whole) == [0] * world_size
    assert gloo.run(world_size, train_worker, broken, 4) == [REQUEUE_EXIT_CODE] * world_size  # in a stage
    assert gloo.run(world_size, train_worker, broken, None, 8) == ["crashed"] * world_size
    assert gloo.run(world_size, train_worker, broken) == [0] * world_size
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    assert end_state(tmp_path / "broken") == end_state(tmp_path / "whole")
    whole_thawed, broken_thawed = (
        [(e["step"], e["frozen"]) for e in read_events(tmp_path / run) if e["event"] == "thawed"]
        for run in ("whole", "broken")
    )
    assert whole_thawed == [(3, "stage3"), (6, "conv1"), (9, "nothing")]
    said = [e["detail"] for e in read_events(tmp_path / "whole") if e["event"] == "thawed"]
    assert said == ["from step 4", "from step 7", "from step 10"]
    # Each opening is in its stage already. One process is saved at step 4 and comes to step 6 twice; two learn of the
    # signal later, are saved at step 6, and open thawed.
    assert [step for step, _ in broken_thawed] == {1: [3, 6, 6, 9], 2: [3, 9]}[world_size]


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_run_that_is_stopped_at_a_thaw_goes_on_to_the_bit(tmp_path: Path, world_size: int) -> None:
    changes = {**SMALL, "eval_every": 3, "checkpoint_every": 3}
    whole = recipe(tmp_path, run_dir=tmp_path / "whole", **changes)
    broken = recipe(tmp_path, run_dir=tmp_path / "broken", **changes)
    assert gloo.run(world_size, train_worker, whole) == [0] * world_size
    assert gloo.run(world_size, train_worker, broken, None, 6) == ["crashed"] * world_size  # goes on from 3, a thaw
    assert gloo.run(world_size, train_worker, broken) == [0] * world_size
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    assert end_state(tmp_path / "broken") == end_state(tmp_path / "whole")


def parts_of(names: set[str]) -> set[str]:
    return {name.removeprefix(TOWER).split(".")[0] for name in names}


def changed(one: dict[str, Tensor], other: dict[str, Tensor]) -> set[str]:
    return {name for name in one if name.startswith(TOWER) and not torch.equal(one[name], other[name])}


def test_what_is_frozen_keeps_every_bit_and_what_is_thawed_trains_with_its_statistics(tmp_path: Path) -> None:
    decay = {"weight_decay": 0.5, "warmup_steps": 0}  # what decays moves, gradient or not
    values = recipe(tmp_path, **{**STAGED, "eval_every": 12, "checkpoint_every": 1, "keep_last": 20, "optim": decay})
    assert gloo.run(1, train_worker, values) == [0]
    steps = {n: load_checkpoint(tmp_path / f"run/checkpoints/step-{n:08d}") for n in range(1, 13)}
    for start, end in ((1, 3), (3, 6), (6, 9), (9, 12)):
        expected = TRAINED[start if start > 1 else 0]
        moved = changed(steps[start].parts["encoder"], steps[end].parts["encoder"])
        assert parts_of(moved) == expected, (start, end)
        assert parts_of({name for name in moved if "running_mean" in name}) == expected
        parameters = {name for name in moved if name.endswith("weight")}
        assert parts_of(parameters) == expected
    # Moments are made with the first gradient, and count their own steps from there.
    counts = {n: {float(s["step"]) for s in steps[n].optimizer_state["state"].values()} for n in (3, 6, 9, 12)}
    assert counts == {3: {3.0}, 6: {6.0, 3.0}, 9: {9.0, 6.0, 3.0}, 12: {12.0, 9.0, 6.0, 3.0}}
    rates = {row.step: row.metrics.get("train/lr_tower") for row in read_metrics(tmp_path / "run/metrics.csv")}
    assert [rates[n] for n in (1, 2, 3)] == [0, 0, 0] and all(rates[n] > 0 for n in range(4, 12))
    proofs = [row.step for row in read_metrics(tmp_path / "run/metrics.csv") if "check/grad_ratio_tower" in row.metrics]
    assert proofs == [3, 6, 9]  # at the start there is no tower to prove


def test_one_and_two_processes_thaw_alike(tmp_path: Path) -> None:
    for world_size in (1, 2):
        values = recipe(tmp_path, run_dir=tmp_path / str(world_size), **SMALL)
        assert gloo.run(world_size, train_worker, values) == [0] * world_size
    one, two = losses(tmp_path / "1"), losses(tmp_path / "2")
    assert one.keys() == two.keys()
    assert max(abs(float(one[step]) - float(two[step])) for step in one) <= 1e-5


def wrappers_at_the_end(values: dict[str, Any]) -> tuple[int | str, int]:
    """In one process of a group: the exit code, and how many wrappers there are when the last step is done."""
    from torch.nn.parallel import DistributedDataParallel

    from trainer.run.run import Run

    left, finish = [], Run.finish

    def count_and_finish(run: Run) -> None:
        gc.collect()
        left.append(sum(isinstance(x, DistributedDataParallel) for x in gc.get_objects()))
        finish(run)

    Run.finish = count_and_finish  # type: ignore[method-assign]
    return train_worker(values), left[0]


def test_a_wrapper_of_before_a_thaw_keeps_no_memory(tmp_path: Path) -> None:
    values = recipe(tmp_path, **{**SMALL, "epochs": 1, "data": {"val": []}, "objective": "nt_xent"})
    assert gloo.run(2, wrappers_at_the_end, values) == [(0, 1), (0, 1)]


def keep_the_wrapper() -> None:
    from trainer.run import run

    run.wrapped_anew = lambda model, accelerator: model


def test_gradients_that_are_not_reduced_after_a_thaw_are_caught(tmp_path: Path) -> None:
    said = gloo.run(2, train_worker, recipe(tmp_path, **SMALL), None, None, keep_the_wrapper)
    assert all("gradient proof: the gradient of 'tower'" in sentence for sentence in said), said


def test_a_thaw_that_never_comes_is_refused_before_the_folder_is_made(tmp_path: Path) -> None:
    model = {**SMALL_TOWER, "freeze": "tower", "thaw": {"12": "nothing"}}
    (said,) = gloo.run(1, train_worker, recipe(tmp_path, model=model))
    assert "model.thaw: '12' is step 12 of the run's 12" in said
    assert not (tmp_path / "run").exists()
