"""A training run killed at random steps, again and again, also while it saves, ends as if nothing had happened.

All its processes get SIGKILL at once and the same recipe is started again: in the end losses, weights, moments and
random generators are those of the undisturbed run, bit for bit, every step stands once in metrics.csv, at no time
was more lost than two checkpoint intervals (one, and the steps that were done while the last checkpoint was being
written: the next one waits for it), and nothing is left lying about. The short form kills 3 times, the long
one 30; every third kill meets a save, which stands still at one of its changes until then, every sixth a run that is
being opened. Kills of the saving alone, many more of them, are in test_checkpoint_kills.py.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import gloo
import pytest
import torch
from holds import Hold, hold_at_change
from training_runs import NOISY, STEPS_PER_EPOCH, end_state, last_checkpoint, losses, recipe, train_worker

import trainer.run.state
from core.storage import PARTIAL_PREFIX
from trainer.checkpoint.files import damage
from trainer.checkpoint.folder import latest_checkpoint
from trainer.data.loader import TrainLoader
from trainer.guard.signals import REQUEUE_EXIT_CODE
from trainer.run.folder import read_events
from trainer.run.run import Run
from trainer.trackers.metrics_csv import read_metrics

INTERVAL = 5  # steps between checkpoints
MOST_LOST = 2 * INTERVAL
NUM_CHANGES = 20  # that a save makes on the disk, at least
PATIENCE_S = 60.0
Plant = Callable[[], None]


def noisy_recipe(tmp_path: Path, name: str, epochs: int) -> dict[str, Any]:
    """All the state there is, and a worker that reads."""
    run_dir, reading = tmp_path / name / "run", {"num_workers": 1}
    cadence = {"epochs": epochs, "eval_every": 12, "checkpoint_every": INTERVAL}
    return recipe(tmp_path, run_dir=run_dir, data=reading, **cadence, **NOISY)


@dataclass(frozen=True)
class Kill:
    """When all processes are killed: after their start, after a step stands in metrics.csv, or inside a save."""

    moment: Literal["start", "step", "save"]
    step: int
    delay_s: float  # so long after that, but for a save
    change: int = 1  # of the disk, by a save


@dataclass
class Account:
    """What the kills met."""

    most_lost: int = 0  # steps between the last one done and the checkpoint, at worst
    num_torn_saves: int = 0  # kills that left a checkpoint's temporary folder
    orphans: list[int] = field(default_factory=list)  # loader workers that were alive


def draw_kills(chance: random.Random, count: int, last_step: int) -> list[Kill]:
    """Different steps in ascending order; every third kill goes for a save, every sixth for a run that opens."""
    steps = sorted(chance.sample(range(1, last_step - INTERVAL), count))
    moments = itertools.cycle(["step", "save", "step", "step", "save", "start"])
    longest = {"start": 1.0, "step": 0.04, "save": 0.0}  # seconds
    return [
        Kill(moment, step, chance.uniform(0, longest[moment]), chance.randint(1, NUM_CHANGES))
        for moment, step in zip(moments, steps)
    ]


@pytest.mark.parametrize(
    "kills", [3, pytest.param(30, marks=[pytest.mark.faults, pytest.mark.timeout(1200)])], ids=["3-kills", "30-kills"]
)
@pytest.mark.parametrize("world_size", [1, pytest.param(2, marks=pytest.mark.faults)])
def test_a_run_killed_at_random_steps_ends_bit_for_bit_the_same(
    tmp_path: Path, fault_seed: int, world_size: int, kills: int
) -> None:
    epochs = 4 if kills < 10 else 20
    whole, broken = (noisy_recipe(tmp_path, name, epochs) for name in ("whole", "broken"))
    assert gloo.run(world_size, train_worker, whole) == [0] * world_size
    drawn = draw_kills(random.Random(fault_seed), kills, epochs * STEPS_PER_EPOCH)
    account = kill_and_resume(broken, world_size, drawn)
    print(f"{kills} kills of {world_size} processes, {account.num_torn_saves} inside a save; lost {account.most_lost}")
    check_equal(broken["run_dir"], whole["run_dir"])
    assert account.num_torn_saves or kills < 10, "no kill met a save: this proves less than it says"
    wait_until(lambda: not any(is_alive(pid) for pid in account.orphans), "a worker outlives its run")


def kill_and_resume(values: dict[str, Any], world_size: int, kills: list[Kill], plant: Plant | None = None) -> Account:
    """Kill a run at each of the moments, start it again each time, and let it come to its end."""
    account = Account()
    run_dir = Path(values["run_dir"])
    for number, kill in enumerate(kills):
        aim = aimed(values, kill, number)
        with gloo.started(world_size, train_worker, values, None, None, partial(hold_run, aim, plant)) as group:
            wait_for_moment(group, aim)
            account.orphans += [child for process in group.processes for child in children_of(process.pid)]
            group.kill()
        checkpoints = run_dir / "checkpoints"
        account.num_torn_saves += any(checkpoints.glob(f"{PARTIAL_PREFIX}*"))
        latest = latest_checkpoint(checkpoints)
        assert latest is None or damage(latest) is None, damage(latest)
        saved = 0 if latest is None else last_checkpoint(run_dir).step
        account.most_lost = max(account.most_lost, last_logged(run_dir) - saved)
        assert account.most_lost <= MOST_LOST, f"killed at step {last_logged(run_dir)}, saved is step {saved}"
    ends = gloo.run(world_size, train_worker, values, None, None, plant)
    assert ends == [0] * world_size, ends
    return account


@dataclass(frozen=True)
class Aim:
    """A kill in one life of a run; it meets a save, which stands still while the loop goes on, or a step."""

    kill: Kill
    step: int  # of this life
    last_step: int  # it goes no further, or a quick machine would end it before it is killed
    folder: Path  # for the two sides to tell each other
    stands_after_save: bool = False  # the loop stands still one step after the save that is met, not at the last step

    @property
    def reached(self) -> Path:
        """Appears when the step stands in metrics.csv."""
        return self.folder / "reached"

    @property
    def in_save(self) -> Hold:
        return Hold(self.folder / "in-save")

    @property
    def at_last_step(self) -> Hold:
        return Hold(self.folder / "at-last-step")


def aimed(values: dict[str, Any], kill: Kill, number: int, steps_more: int = INTERVAL) -> Aim:
    """The kill for the next life of the run; it may go on for so many steps after the one that is awaited."""
    latest = latest_checkpoint(Path(values["run_dir"]) / "checkpoints")
    step = max(kill.step, 1 + int(latest.name.removeprefix("step-")) if latest else 1)
    folder = Path(values["run_dir"]).parents[1] / f"aim-{number}"
    folder.mkdir()
    return Aim(kill, step, min(step + steps_more, values["epochs"] * STEPS_PER_EPOCH - 1), folder)


def hold_run(aim: Aim, plant: Plant | None) -> None:
    """Plant: the process that writes stands still where the kill is to meet it."""
    if plant is not None:
        plant()
    if torch.distributed.get_rank() != 0:
        return
    log, count, save_run, save = Run.log, Run.count, Run.save, trainer.run.state.save_checkpoint
    begun: list[int] = []
    saves: list[int] = []

    def log_and_tell(run: Run, step: int, *rest: Any) -> None:
        log(run, step, *rest)
        if step >= aim.step:
            aim.reached.touch()

    def count_and_stop(run: Run, step: int, *rest: Any) -> None:
        count(run, step, *rest)
        if begun if aim.stands_after_save else step == aim.last_step:
            aim.at_last_step.stand_still()

    def save_and_tell(run: Run, step: int, *rest: Any, **named: Any) -> None:
        save_run(run, step, *rest, **named)
        if step >= aim.step:
            begun.append(step)

    def save_and_stop(folder: Path, *, state: Any, **rest: Any) -> Any:
        if aim.kill.moment == "save" and state["step"] >= aim.step and not saves:
            saves.append(state["step"])
            hold_at_change(folder, aim.kill.change, aim.in_save)
        return save(folder, state=state, **rest)

    Run.log, Run.count, Run.save = log_and_tell, count_and_stop, save_and_tell  # type: ignore[method-assign]
    trainer.run.state.save_checkpoint = save_and_stop


def wait_for_moment(group: gloo.Group, aim: Aim) -> None:
    """Return when it is time; the run must not have ended before."""
    if aim.kill.moment == "save":
        aim.in_save.wait(lambda: group.is_running)
    elif aim.kill.moment == "step":
        wait_until(lambda: not group.is_running or aim.reached.exists(), f"step {aim.step} does not come")
    time.sleep(aim.kill.delay_s)
    assert group.is_running, f"ended before it was killed: {group.results()}"


def check_equal(run_dir: Path, undisturbed: Path) -> None:
    """The training, and the files that there are."""
    check_same_training(run_dir, undisturbed)
    assert files_below(run_dir.parent) == files_below(undisturbed.parent)
    covered = [event["epoch"] for event in read_events(run_dir) if event["event"] == "epoch covered"]
    assert sorted(set(covered)) == list(range(max(covered) + 1))


def check_same_training(run_dir: Path, undisturbed: Path) -> None:
    """Losses, all state, every step once, the same validations."""
    assert losses(run_dir) == losses(undisturbed)
    assert end_state(run_dir) == end_state(undisturbed)
    measured, expected = (read_metrics(path / "metrics.csv") for path in (run_dir, undisturbed))
    assert [row.step for row in measured] == [row.step for row in expected] == sorted({row.step for row in expected})
    validated = [
        [{k: v for k, v in row.metrics.items() if k.startswith("val/")} for row in m] for m in (measured, expected)
    ]
    assert validated[0] == validated[1]


@pytest.mark.faults
@pytest.mark.parametrize("world_size", [1, 2])
def test_sigterm_leaves_a_checkpoint_of_the_last_step_and_the_requeue_code(
    tmp_path: Path, fault_seed: int, world_size: int
) -> None:
    chance, epochs = random.Random(fault_seed), 8
    whole, broken = (noisy_recipe(tmp_path, name, epochs) for name in ("whole", "broken"))
    assert gloo.run(world_size, train_worker, whole) == [0] * world_size
    run_dir = Path(broken["run_dir"])
    stops = [kill for kill in draw_kills(chance, 10, epochs * STEPS_PER_EPOCH) if kill.moment != "start"]
    for number, stop in enumerate(stops):
        aim = replace(aimed(broken, stop, number, steps_more=0), stands_after_save=stop.moment == "save")
        with gloo.started(world_size, train_worker, broken, None, None, partial(hold_run, aim, None)) as group:
            at_signal = wait_to_signal(group, aim)
            chosen = group.processes if chance.random() < 0.5 else [chance.choice(group.processes)]
            for process in chosen:
                os.kill(process.pid, signal.SIGTERM)
            aim.at_last_step.release()
            aim.in_save.release()  # the stop's own save waits for this one
            assert group.results() == [REQUEUE_EXIT_CODE] * world_size
        saved = last_checkpoint(run_dir).step
        assert saved == last_logged(run_dir)  # no step after it, none without it
        # The step under way, and one more until all ranks know.
        assert at_signal <= saved <= at_signal + world_size
    assert gloo.run(world_size, train_worker, broken) == [0] * world_size
    check_same_training(run_dir, whole["run_dir"])  # the stops' own checkpoints are more files


def wait_to_signal(group: gloo.Group, aim: Aim) -> int:
    """Wait until the run stands still in a step, and beside it in the save that is to be met; returns the step."""
    aim.at_last_step.wait(lambda: group.is_running)
    if aim.kill.moment == "step":
        return aim.step
    aim.in_save.wait(lambda: group.is_running)
    return last_logged(Path(aim.folder.parent / "broken" / "run"))


def resume_without_random_states() -> None:
    import trainer.run.opening

    trainer.run.opening.set_rng_state = lambda state: None


def resume_one_step_late() -> None:
    real = TrainLoader.epoch
    TrainLoader.epoch = lambda self, epoch, step=0: real(self, epoch, step + bool(step))  # type: ignore[assignment]


def resume_without_moments() -> None:
    import trainer.run.state

    trainer.run.state._load_optimizer = lambda optimizer, checkpoint: None


def save_every_third_time() -> None:
    import trainer.run.state

    real = trainer.run.state.save_checkpoint

    def save(folder: Path, *, state: Any, **rest: Any) -> Any:
        return folder if state["step"] % (3 * INTERVAL) else real(folder, state=state, **rest)

    trainer.run.state.save_checkpoint = save


def keep_the_lines_of_steps_that_come_again() -> None:
    import trainer.trackers.opening

    real = trainer.trackers.opening.MetricsCsv
    trainer.trackers.opening.MetricsCsv = lambda run_dir, step: real(run_dir, step and 10**9)  # type: ignore[misc]


def leave_temporary_folders() -> None:
    import trainer.checkpoint.folder

    trainer.checkpoint.folder.sweep_partials = lambda folder: None


AT_A_STEP, IN_A_SAVE = Kill("step", 7, 0.0), Kill("save", 8, 0.0, change=5)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("plant", "kill", "complaint"),
    [
        (resume_without_random_states, AT_A_STEP, "assert {"),
        (resume_without_moments, AT_A_STEP, "assert {"),
        (resume_one_step_late, AT_A_STEP, "batch of epoch 1 in the ledger of epoch 0"),
        (save_every_third_time, Kill("step", 14, 0.0), "saved is step 0"),
        (keep_the_lines_of_steps_that_come_again, AT_A_STEP, "a step stands twice"),
        (leave_temporary_folders, IN_A_SAVE, "partial"),
    ],
)
def test_a_planted_defect_turns_the_kills_red(tmp_path: Path, plant: Plant, kill: Kill, complaint: str) -> None:
    whole, broken = (noisy_recipe(tmp_path, name, 4) for name in ("whole", "broken"))
    assert gloo.run(1, train_worker, whole) == [0]
    with pytest.raises((AssertionError, RuntimeError), match=complaint):
        kill_and_resume(broken, 1, [kill], plant)
        check_equal(broken["run_dir"], whole["run_dir"])


def last_logged(run_dir: Path) -> int:
    """The last step of metrics.csv, a torn line left out; 0 before the first."""
    path = run_dir / "metrics.csv"
    lines = path.read_bytes().split(b"\n")[1:-1] if path.exists() else []
    return int(lines[-1].split(b",")[0]) if lines else 0


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def children_of(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


def is_alive(pid: int) -> bool:
    """Zombies, which nobody has waited for, are dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(is_true: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_true():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.002)
