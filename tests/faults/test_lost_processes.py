"""One of two processes is killed, stopped, or raises at a random step: the other ends in time and names it.

Nothing but the run itself tells the other one: torchrun, which would end it as well, is left out. The short form kills
once, with real commands; the long one tries each way ten times.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import gloo
import pytest
from endless_runs import command_recipe, run_recipe, wait_for_step
from holds import Hold
from training_runs import train_worker

from core.config import dump_yaml, from_mapping
from trainer.config import TrainConfig
from trainer.guard.peer_watch import GRACE_S, PEER_LOST_EXIT_CODE
from trainer.run.folder import read_events

ROOT = Path(__file__).resolve().parents[2]
PEER_TIMEOUT_S = 3.0
MARGIN_S = 5.0  # for two processes on a core that others use too
LAST_STEP = 100  # at which a process is lost
SENTENCES = {
    "killed": "ended without a word: it was killed",
    "stopped": f"gave no sign of life for {PEER_TIMEOUT_S:g} s: it is stopped",
    "raising": "ended with ZeroDivisionError: planted",
}


@pytest.mark.faults
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("way", list(SENTENCES))
def test_the_other_process_ends_in_time_and_names_the_lost_one(tmp_path: Path, fault_seed: int, way: str) -> None:
    chance = random.Random(fault_seed)
    for trial in range(10):
        lost_rank, step = chance.randrange(2), chance.randrange(1, LAST_STEP)
        print(f"trial {trial}: process {lost_rank} is {way} at step {step}")
        said, took_s = lose(tmp_path / f"{trial}", way, lost_rank, step)
        assert f"process {lost_rank} of 2" in said and SENTENCES[way] in said, said
        # A silence must last before it counts; everything else is known at once.
        allowed_s = (PEER_TIMEOUT_S if way == "stopped" else 0) + GRACE_S + MARGIN_S
        assert took_s < allowed_s, f"{took_s:.1f} s"


@pytest.mark.faults
@pytest.mark.parametrize("way", list(SENTENCES))
def test_without_the_watch_nobody_is_named(tmp_path: Path, way: str) -> None:
    """What the test above sees where the watch does nothing: it can fail."""
    said, _ = lose(tmp_path, way, 1, 5, peer_timeout_s=0.0)
    assert "process 1 of 2" not in said


@pytest.mark.faults
def test_processes_that_are_stopped_together_go_on_together(tmp_path: Path) -> None:
    values, hold = run_recipe(tmp_path, peer_timeout_s=1.0, steps=50), Hold(tmp_path / "hold")
    with gloo.started(2, train_worker, values, None, None, partial(stand_still_at_step, 3, hold)) as group:
        hold.wait(lambda: group.is_running)
        group.send(signal.SIGSTOP)
        time.sleep(3)  # longer than a silence may last
        hold.release()
        group.send(signal.SIGCONT)
        assert group.results() == [0, 0]


def test_a_command_whose_peer_is_killed_says_so_and_gives_its_own_exit_code(tmp_path: Path) -> None:
    processes = start_commands(tmp_path)
    try:
        wait_for_step(tmp_path, 3)
        processes[1].kill()
        _, said = processes[0].communicate(timeout=60)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert processes[0].returncode == PEER_LOST_EXIT_CODE, said
    assert said.count("\n") == 1 and "process 1 of 2" in said and SENTENCES["killed"] in said, said


def lose(folder: Path, way: str, lost_rank: int, step: int, peer_timeout_s: float = PEER_TIMEOUT_S) -> tuple:
    """Start two processes and lose one; returns what the other wrote into the run's events, and the seconds it took."""
    folder.mkdir(exist_ok=True)
    plant = partial(raise_at_step, lost_rank, step, folder) if way == "raising" else None
    with gloo.started(2, train_worker, run_recipe(folder, peer_timeout_s), None, None, plant) as group:
        lost, other = group.processes[lost_rank], group.processes[1 - lost_rank]
        wait_for_step(folder, step - 1 if way == "raising" else step)  # of its step, nobody may write a line
        began = time.monotonic()
        if way != "raising":
            os.kill(lost.pid, signal.SIGKILL if way == "killed" else signal.SIGSTOP)
        # Without the watch, stopping is found by nobody: this waits for as long as it would with it.
        other.join(PEER_TIMEOUT_S + GRACE_S + MARGIN_S)
        took_s = time.monotonic() - began
        failures = [event["error"] for event in read_events(folder / "run") if event["event"] == "failed"]
    return "\n".join(failures), took_s


def stand_still_at_step(at: int, hold: Hold) -> None:
    """Plant: one process waits in its step, and with it the other."""
    from core.distributed import rank
    from trainer.run.run import Run

    real = Run.count

    def count(run: Run, step: int, *rest: Any) -> None:
        real(run, step, *rest)
        if step == at and rank() == 0:
            hold.stand_still()

    Run.count = count  # type: ignore[method-assign]


def raise_at_step(lost_rank: int, at: int, folder: Path) -> None:
    """Plant: an error of its own comes up in one process, once the step before is where the test looks for it."""
    from core.distributed import rank
    from trainer.run.run import Run

    real = Run.count

    def count(run: Run, step: int, *rest: Any) -> None:
        real(run, step, *rest)
        if step == at and rank() == lost_rank:
            wait_for_step(folder, at - 1)
            raise ZeroDivisionError("planted")

    Run.count = count  # type: ignore[method-assign]


def start_commands(folder: Path) -> list[subprocess.Popen[str]]:
    """Two processes of one run, as a launcher starts them."""
    path = folder / "recipe.yaml"
    path.write_text(dump_yaml(from_mapping(TrainConfig, command_recipe(folder, PEER_TIMEOUT_S), "test")))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    common |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "launch.train", str(path)],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
