"""One of two processes is killed, stopped, or raises at a random step: the other ends in time and names it.

Two real training processes as a launcher starts them, without a launcher: torchrun would end the other one by itself.
The short form kills once, the long one tries each way ten times. The seed is printed; SHARDCLIP_FAULT_SEED replays it.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from shard_sets import make_shard_set

from core.config import dump_yaml, from_mapping
from trainer.config import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
PEER_TIMEOUT_S = 4.0
MARGIN_S = 12.0  # the grace for a waiting main thread, and two cores that others use too
LAST_STEP = 30
# Rank 1 of a run, in which an error of its own comes up at a given step.
RAISE = """
import sys
from trainer.run import Run
count = Run.count
def raise_at(run, step, *rest):
    if step == int(sys.argv[1]):
        raise ZeroDivisionError("planted")
    count(run, step, *rest)
Run.count = raise_at
from launch.train import main
sys.exit(main(sys.argv[2:]))
"""


FULL = [pytest.mark.faults, pytest.mark.timeout(1800)]
WAYS = ["killed", "stopped", "raising"]


@pytest.mark.parametrize(
    ("way", "trials"), [pytest.param("killed", 1), *(pytest.param(way, 10, marks=FULL) for way in WAYS)]
)
def test_the_other_process_ends_in_time_and_names_the_lost_one(tmp_path: Path, way: str, trials: int) -> None:
    seed = int(os.environ.get("SHARDCLIP_FAULT_SEED", random.SystemRandom().randrange(10**6)))
    print(f"SHARDCLIP_FAULT_SEED={seed}")
    chance = random.Random(seed)
    for trial in range(trials):
        folder = tmp_path / f"{trial}"
        lost_rank, step = chance.randrange(2), chance.randrange(1, LAST_STEP)
        print(f"trial {trial}: process {lost_rank} is {way} at step {step}")
        said, took_s, code = lose(folder, way, lost_rank, step)
        assert code == 3, said
        assert f"process {lost_rank} of 2" in said, said
        assert NAMES[way] in said, said
        assert took_s < PEER_TIMEOUT_S + MARGIN_S, f"{took_s:.1f} s"
        state = json.loads((folder / "run/run.json").read_text())["state"]
        assert state == "failed", state


NAMES = {"killed": "it was killed", "stopped": "it is stopped", "raising": "ended with ZeroDivisionError: planted"}


@pytest.mark.faults
def test_without_the_watch_nobody_is_named(tmp_path: Path) -> None:
    """What the test above sees where the watch does nothing: it can fail."""
    said, _, code = lose(tmp_path, "killed", 1, 5, peer_timeout_s=0.0)
    assert "process 1 of 2" not in said and code != 3


@pytest.mark.faults
def test_processes_that_are_stopped_together_go_on_together(tmp_path: Path) -> None:
    processes = start(tmp_path, write_recipe(tmp_path, peer_timeout_s=1.0), {})
    try:
        wait_for_step(processes, tmp_path, 3)
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for process in processes:
                process.send_signal(number)
            time.sleep(3)
        assert [process.wait(120) for process in processes] == [0, 0], processes[0].communicate()
    finally:
        end(processes)


def lose(folder: Path, way: str, lost_rank: int, step: int, peer_timeout_s: float = PEER_TIMEOUT_S) -> tuple:
    """Start two processes and lose one; returns what the other said, the seconds it took it, and its exit code."""
    raises_at = {lost_rank: step} if way == "raising" else {}
    processes = start(folder, write_recipe(folder, peer_timeout_s), raises_at)
    try:
        lost, other = processes[lost_rank], processes[1 - lost_rank]
        wait_for_step(processes, folder, step)
        began = time.monotonic()
        if way == "killed":
            lost.kill()
        elif way == "stopped":
            lost.send_signal(signal.SIGSTOP)
        _, said = other.communicate(timeout=120)
        return said, time.monotonic() - began, other.returncode
    finally:
        end(processes)


def write_recipe(folder: Path, peer_timeout_s: float) -> Path:
    folder.mkdir(exist_ok=True)
    train = make_shard_set(folder / "train", 40, size=32)
    values = {
        "run_dir": folder / "run",
        "data": {"train": train, "num_workers": 1},
        "global_batch_size": 8,
        "epochs": 1000,
        "max_steps": LAST_STEP + 10,
        "model": {"tower": "resnet18", "freeze": "tower", "hidden_dim": 16},
        "optim": {"warmup_steps": 2},
        "log_every": 1,
        "peer_timeout_s": peer_timeout_s,
        "tracking": {"wandb": "disabled"},
    }
    path = folder / "recipe.yaml"
    path.write_text(dump_yaml(from_mapping(TrainConfig, values, "test")))
    return path


def start(folder: Path, recipe: Path, raises_at: dict[int, int]) -> list[subprocess.Popen[str]]:
    """Two processes of one run."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    common |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    processes = []
    for rank in range(2):
        program = ["-c", RAISE, str(raises_at[rank])] if rank in raises_at else ["-m", "launch.train"]
        processes.append(
            subprocess.Popen(
                [sys.executable, *program, str(recipe)],
                env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return processes


def wait_for_step(processes: list[subprocess.Popen[str]], folder: Path, step: int) -> None:
    """Until `step - 1` steps are in metrics.csv: the next one is under way."""
    metrics, deadline = folder / "run/metrics.csv", time.monotonic() + 120
    while not metrics.exists() or metrics.read_text().count("\n") < step + 1:
        ended = [process.communicate()[1] for process in processes if process.poll() is not None]
        assert not ended and time.monotonic() < deadline, f"the run does not get there: {ended}"
        time.sleep(0.01)


def end(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        process.kill()
        process.communicate()
