"""Checkpoints are made beside the loop: of their step, one at a time, none left out, and a failed one ends the run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gloo
import pytest
from training_runs import NOISY, SMALL_TOWER, losses, recipe, train_worker

from core.errors import StorageError
from core.storage import PARTIAL_PREFIX
from trainer.checkpoint.files import damage, read_manifest
from trainer.guard.peer_watch import GRACE_S
from trainer.guard.signals import REQUEUE_EXIT_CODE
from trainer.run.folder import read_events
from trainer.trackers.metrics_csv import read_metrics

PATIENCE_S = 60.0
ALL_STAY: dict[str, Any] = {"keep_last": 100}


def wait_until(is_true: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_true():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.002)


def saves(run_dir: Path) -> dict[int, Path]:
    """The checkpoints that there are by their steps; each is whole."""
    paths = {int(path.name.removeprefix("step-")): path for path in (run_dir / "checkpoints").glob("step-*")}
    assert all(damage(path) is None for path in paths.values())
    assert not list((run_dir / "checkpoints").glob(f"{PARTIAL_PREFIX}*"))
    return dict(sorted(paths.items()))


def make_saving_slow(run_dir: Path, at: int, until: int) -> None:
    """Plant: the save of step `at` begins to write when step `until` is logged; each thing that is done is told."""
    import trainer.run.state
    from core.distributed import is_main
    from trainer.trackers.tracker import RunTrackers

    real, flush = trainer.run.state.save_checkpoint, RunTrackers.flush

    def tell(what: str) -> None:
        with open(run_dir.parent / "told", "a") as file:
            file.write(what + "\n")

    def save(folder: Path, *, state: Any, **rest: Any) -> Any:
        tell(f"begin {state['step']}")
        if state["step"] == at:
            wait_until(lambda: until in losses(run_dir), f"step {until} does not come while a save is under way")
        path = real(folder, state=state, **rest)
        tell(f"end {state['step']}")
        return path

    def flush_and_tell(trackers: RunTrackers) -> None:
        flush(trackers)
        tell("flush")

    if is_main():
        trainer.run.state.save_checkpoint, RunTrackers.flush = save, flush_and_tell  # type: ignore[method-assign]


def save_in_the_loop() -> None:
    """Plant: every step waits for its save, as if there was no thread."""
    from trainer.checkpoint.background import Saver

    real = Saver.start

    def start(saver: Saver, *arguments: Any) -> None:
        real(saver, *arguments)
        saver._thread.join()  # type: ignore[union-attr]

    Saver.start = start  # type: ignore[method-assign]


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_checkpoint_is_of_its_step_though_it_is_written_later(tmp_path: Path, world_size: int) -> None:
    plain = recipe(tmp_path, run_dir=tmp_path / "plain", **NOISY, **ALL_STAY)
    slow = recipe(tmp_path, run_dir=tmp_path / "slow" / "run", **NOISY, **ALL_STAY)
    assert gloo.run(world_size, train_worker, plain, None, None, save_in_the_loop) == [0] * world_size
    plant = partial(make_saving_slow, slow["run_dir"], 4, 7)
    assert gloo.run(world_size, train_worker, slow, None, None, plant) == [0] * world_size
    assert losses(slow["run_dir"]) == losses(plain["run_dir"])
    ours, expected = saves(slow["run_dir"]), saves(plain["run_dir"])
    assert list(ours) == list(expected) == [4, 8, 12]
    for step, path in ours.items():
        for file in expected[step].glob("*.safetensors"):
            assert (path / file.name).read_bytes() == file.read_bytes(), (step, file.name)
        state, other = (json.loads((folder / "state.json").read_text()) for folder in (path, expected[step]))
        for values in (state, other):
            del values["run_id"], values["seconds"]
        assert state == other
        assert read_manifest(path).is_best == read_manifest(expected[step]).is_best
    told = (slow["run_dir"].parent / "told").read_text().split("\n")
    # One at a time, in the order of steps; what was logged lasts before the checkpoint does.
    assert told == [line for step in (4, 8, 12) for line in ("flush", f"begin {step}", f"end {step}")] + [""]


def test_the_figures_say_how_long_the_loop_stood_still(tmp_path: Path) -> None:
    values = recipe(tmp_path, run_dir=tmp_path / "slow" / "run", model=SMALL_TOWER, eval_every=100)
    assert gloo.run(1, train_worker, values, None, None, partial(slow_down, 0.5)) == [0]
    stood = {
        row.step: row.metrics["perf/checkpoint_wait_s"] for row in read_metrics(values["run_dir"] / "metrics.csv")[1:]
    }
    assert 0 < stood[5] < 0.25 < stood[9] < 1  # the copy alone; the copy, and the rest of the half second
    assert stood[4] == stood[6] == 0


def slow_down(seconds: float) -> None:
    """Plant: a save takes half a second, and the steps between two of them much less."""
    import trainer.run.state

    real = trainer.run.state.save_checkpoint

    def save(*arguments: Any, **named: Any) -> Any:
        time.sleep(seconds)
        return real(*arguments, **named)

    trainer.run.state.save_checkpoint = save


def test_neither_the_best_nor_the_stops_checkpoint_is_left_out(tmp_path: Path) -> None:
    """Both come while the save before them is under way; the stop is asked for at the validation of step 4."""
    values = recipe(tmp_path, model=SMALL_TOWER, checkpoint_every=3, **ALL_STAY)
    assert gloo.run(1, train_worker, values, 4, None, partial(slow_down, 0.3)) == [REQUEUE_EXIT_CODE]
    made = saves(tmp_path / "run")
    assert list(made) == [3, 4, 5] and [read_manifest(path).is_best for path in made.values()] == [False, True, False]
    assert '"state": "stopped"' in (tmp_path / "run" / "run.json").read_text()


def fail_to_save(at: int, kind: type[Exception] = StorageError) -> None:
    """Plant: the save of step `at` fails while the next step is computed."""
    import trainer.run.state
    from core.distributed import is_main
    from trainer.run.run import Run

    real, count = trainer.run.state.save_checkpoint, Run.count

    def save(folder: Path, *, state: Any, **rest: Any) -> Any:
        if state["step"] == at:
            raise kind("disk: cannot be written (planted).")
        return real(folder, state=state, **rest)

    def count_when_it_has_failed(run: Run, step: int, *rest: Any) -> None:
        count(run, step, *rest)
        if is_main() and step == at + 1:
            wait_until(lambda: run.saver.has_failed, "the save does not fail")

    trainer.run.state.save_checkpoint, Run.count = save, count_when_it_has_failed  # type: ignore[method-assign]


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_save_that_fails_ends_the_run_on_every_rank_at_once(tmp_path: Path, world_size: int) -> None:
    values = recipe(tmp_path, model=SMALL_TOWER, eval_every=100)
    said = gloo.run(world_size, train_worker, values, None, None, partial(fail_to_save, 4))
    assert said == ["disk: cannot be written (planted)."] * world_size
    assert max(losses(tmp_path / "run")) == 3 + world_size  # several ranks know of it one step later
    assert '"state": "failed"' in (tmp_path / "run" / "run.json").read_text()
    failed = [event["error"] for event in read_events(tmp_path / "run") if event["event"] == "failed"]
    assert failed and set(failed) == {"StorageError: disk: cannot be written (planted)."}
    assert saves(tmp_path / "run") == {} and not (tmp_path / "run" / ".lock").exists()
    assert gloo.run(world_size, train_worker, values) == [0] * world_size


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_last_save_must_not_fail_either(tmp_path: Path, world_size: int) -> None:
    values = recipe(tmp_path, model=SMALL_TOWER)
    said = gloo.run(world_size, train_worker, values, None, None, partial(fail_to_save, 12))
    assert said == ["disk: cannot be written (planted)."] * world_size
    assert '"state": "failed"' in (tmp_path / "run" / "run.json").read_text()
    assert list(saves(tmp_path / "run")) == [4, 8]


@pytest.mark.parametrize("fails", [False, True])
def test_a_run_that_crashes_meanwhile_lets_the_save_come_to_its_end(tmp_path: Path, fails: bool) -> None:
    values = recipe(tmp_path, model=SMALL_TOWER, checkpoint_every=7)
    plant = partial(fail_at_last, tmp_path / "run") if fails else partial(slow_down, 0.5)
    assert gloo.run(1, train_worker, values, None, 8, plant) == ["crashed"]
    assert list(saves(tmp_path / "run")) == ([4] if fails else [4, 7])
    assert not (tmp_path / "run" / ".lock").exists()
    errors = {event["event"]: event["error"] for event in read_events(tmp_path / "run") if "error" in event}
    assert errors.pop("failed") == "ZeroDivisionError: planted"
    assert errors == ({"checkpoint failed": "StorageError: disk: full."} if fails else {})


@pytest.mark.slow
def test_nobody_ends_a_process_that_brings_its_save_to_an_end(tmp_path: Path) -> None:
    """All ranks fail alike; the others have nothing to save, and have left long before the first is done."""
    values = recipe(tmp_path, model=SMALL_TOWER, checkpoint_every=7)
    plant = partial(slow_down, 3.0 + GRACE_S)
    assert gloo.run(2, train_worker, values, None, 8, plant) == ["crashed", "crashed"]
    assert list(saves(tmp_path / "run")) == [4, 7]
    failures = [event["error"] for event in read_events(tmp_path / "run") if event["event"] == "failed"]
    assert set(failures) == {"ZeroDivisionError: planted"}


def fail_at_last(run_dir: Path) -> None:
    """Plant: the save of step 7 fails after the run has."""
    import trainer.run.state

    real = trainer.run.state.save_checkpoint

    def save(folder: Path, *, state: Any, **rest: Any) -> Any:
        if state["step"] != 7:
            return real(folder, state=state, **rest)
        wait_until(lambda: any(event["event"] == "failed" for event in read_events(run_dir)), "the run does not fail")
        raise StorageError("disk: full.")

    trainer.run.state.save_checkpoint = save
