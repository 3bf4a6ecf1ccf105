"""Ctrl-C saves a training as SIGTERM does, and ends every other command with a line that says what is kept.

A terminal's Ctrl-C reaches the whole process group, so these commands have one of their own, which gets the signal.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from broken_inputs import workspace
from holds import Hold
from process_groups import members

from trainer.checkpoint.folder import latest_checkpoint

ROOT = Path(__file__).resolve().parents[2]
# The command line with a place in which it stands still: "module:function" of the verb's own work.
PROGRAM = """
import importlib, signal, sys
from pathlib import Path
from holds import Hold
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets its background jobs ignore it
file, place, *words = sys.argv[1:]
module, name = place.split(":")
module = importlib.import_module(module)
def stand_still(*arguments, **named):
    Hold(Path(file)).stand_still()
setattr(module, name, stand_still)
sys.argv = ["shardclip", *words]
from launch import cli
cli.main()
"""
# A process of a training, as the launcher starts it, that stands still before its run is open.
OPENING = """
import signal, sys
from pathlib import Path
from holds import Hold
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
from launch import train
from trainer.guard.signals import interrupts_leave_quietly
from trainer.run import opening
opening.open_run = lambda *arguments: Hold(Path(sys.argv[1])).stand_still()
with interrupts_leave_quietly():
    train.main(sys.argv[2:])
"""
TRAINING = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv = ["shardclip", *sys.argv[1:]]
from launch import cli
cli.main()
"""


@pytest.fixture
def places(tmp_path: Path) -> dict[str, str]:
    return workspace(tmp_path / "work")


@contextmanager
def started(program: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    """The command in a group of its own, which is gone afterwards."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", program, *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def press(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGINT)


def wait_for_end_of(group: int) -> None:
    deadline = time.monotonic() + 20
    while members(group):
        assert time.monotonic() < deadline, "a process outlives the command"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("place", "words", "kept"),
    [
        ("shard_builder.build:_write_shards", ["build", "{build}"], "The finished shards stay in {folder}/new"),
        ("shard_builder.embed:make_columns", ["embed", "{train}"], "embedded captions in ~/.cache/shardclip"),
        ("launch.columns:make_columns", ["column", "labels", "{train}"], "Finished columns stay"),
        ("shard_builder.estimate:read_inputs", ["plan", "{build}"], "A plan writes nothing."),
        ("shard_builder.verify:verify", ["verify", "{train}"], "Checking changes nothing."),
        ("shard_builder.preview:preview", ["preview", "{train}"], "No picture was written."),
        ("shard_builder.index_tars:index_shards", ["index-shards", "{raw}"], "The set is as it was before."),
        ("eval.early:expect_measurable", ["eval", "{measure}"], "may be replaced in part, report.html last"),
        ("launch.early:mistakes", ["doctor", "{recipe}"], "Looking changes nothing."),
        ("launch.early:expect_startable", ["train", "{recipe}"], "No process was started."),
    ],
)
def test_one_line_says_what_is_kept(
    places: dict[str, str], tmp_path: Path, place: str, words: list[str], kept: str
) -> None:
    hold = Hold(tmp_path / "held")
    with started(PROGRAM, str(hold.file), place, *(word.format(**places) for word in words)) as command:
        hold.wait(lambda: command.poll() is None)
        press(command)
        _, errors = command.communicate(timeout=60)
    assert command.returncode == 130
    assert errors.startswith("shardclip: stopped. ") and errors.count("\n") == 1
    assert kept.format(**places) in errors
    wait_for_end_of(command.pid)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_training_saves_and_leaves_as_after_a_sigterm(places: dict[str, str], processes: int) -> None:
    words = ["train", places["recipe"], "--processes", str(processes), "epochs=500", "log_every=1"]
    with started(TRAINING, *words) as command:
        assert command.stdout is not None
        next(line for line in command.stdout if line.startswith("step"))
        press(command)
        said, errors = command.communicate(timeout=120)
    assert command.returncode == 75, errors[-2000:]
    assert "SIGINT: saved at step" in said and "Traceback" not in errors
    assert errors.count("shardclip: stopping") == 1
    run = Path(places["folder"]) / "run"
    assert json.loads((run / "run.json").read_text())["state"] == "stopped"
    assert latest_checkpoint(run / "checkpoints") is not None
    wait_for_end_of(command.pid)


def test_before_a_run_is_open_it_leaves_quietly(places: dict[str, str], tmp_path: Path) -> None:
    hold = Hold(tmp_path / "held")
    with started(OPENING, str(hold.file), places["recipe"]) as command:
        hold.wait(lambda: command.poll() is None)
        press(command)
        _, errors = command.communicate(timeout=60)
    assert command.returncode == 130
    assert errors == "shardclip: stopped outside of a run: there was nothing to save.\n"
    assert not (Path(places["folder"]) / "run").exists()
