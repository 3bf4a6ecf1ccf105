"""The processes of a machine hear every signal, do not outlive each other for long, and have one exit code."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from launch import workers
from launch.workers import caught_signals, common_code, run_workers

KILLED, ABORTED = -signal.SIGKILL, -signal.SIGABRT
# A process that does what its rank is told: ends with a code, or saves for some seconds when it is asked to stop.
WORKER = """
import os, signal, sys, time
from pathlib import Path
word = sys.argv[2:][int(os.environ["RANK"])]
def save(number, frame):
    time.sleep(float(word))
    sys.exit(75)
if word.startswith("code"):
    sys.exit(int(word[4:]))
if word.startswith("kill"):
    os.kill(os.getpid(), int(word[4:]))
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
    signal.signal(number, save)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
(Path(sys.argv[1]) / os.environ["RANK"]).touch()
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("codes", "received", "code"),
    [
        ([0, 0], [], 0),
        ([75, 75], [signal.SIGUSR1], 75),
        ([75, 75], [], 75),  # another machine was told
        ([2, 3], [], 2),
        ([3, 1], [], 1),
        ([3, 3], [], 3),
        ([KILLED, 3], [], 3),
        ([ABORTED, ABORTED], [], 3),  # NCCL's watchdog, where a process of another machine was lost
        ([75, KILLED], [], 3),
        ([75, KILLED], [signal.SIGTERM], 143),  # did not save in time
        ([-signal.SIGUSR1, 3], [signal.SIGUSR1], 138),  # before it could catch it
        ([-signal.SIGINT, -signal.SIGINT], [signal.SIGINT], 130),
        ([2, 2], [signal.SIGTERM], 2),
        ([75, 75], [signal.SIGINT], 75),
        ([KILLED, KILLED], [signal.SIGINT, signal.SIGINT], 130),
        ([75, KILLED], [signal.SIGINT, signal.SIGINT], 130),
    ],
)
def test_one_exit_code_says_what_came_of_all(codes: list[int], received: list[int], code: int) -> None:
    assert common_code(codes, received) == code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_to_one_process_reaches_all_and_lets_them_save(tmp_path: Path, number: signal.Signals) -> None:
    assert run(tmp_path, "0.1", "1.5", save_s=30, number=number) == 75


def test_a_second_ctrl_c_waits_for_nobody(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "50", "50", save_s=600, number=signal.SIGINT, times=2) == 130
    assert capfd.readouterr().err.count("left at once, without saving") == 1


def test_who_does_not_save_in_time_is_killed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    assert run(tmp_path, "0.1", "50", save_s=1, number=signal.SIGTERM) == 128 + signal.SIGTERM
    assert time.monotonic() - began < 30
    assert "shardclip: process 1 of 2 does not leave: it is killed." in capfd.readouterr().err


@pytest.mark.parametrize(("word", "code"), [("code2", 2), ("code1", 1), (f"kill{signal.SIGABRT:d}", 3)])
def test_nobody_waits_long_for_a_process_that_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str, code: int
) -> None:
    monkeypatch.setattr(workers, "FAREWELL_S", 1.0)
    began = time.monotonic()
    assert run(tmp_path, word, "0", save_s=1) == code
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("word", [f"code{128 + signal.SIGINT}", "code3"])
def test_nobody_saves_for_long_once_one_has_left_without_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    monkeypatch.setattr(workers, "FAREWELL_S", 1.0)
    began = time.monotonic()
    assert run(tmp_path, word, "0", save_s=600) == int(word.removeprefix("code"))
    assert time.monotonic() - began < 30


def test_a_process_that_was_killed_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "code3", f"kill{signal.SIGSEGV:d}") == 3
    assert "shardclip: process 1 of 2 was ended by SIGSEGV." in capfd.readouterr().err


def test_what_nohup_ignores_stays_ignored() -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with caught_signals() as received:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGUSR1)
        assert received == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGHUP, previous)


def run(folder: Path, *words: str, save_s: float = 30.0, number: int = 0, times: int = 1) -> int:
    """The exit code of processes that do as their words say; once they run, this one is sent a signal."""

    def send() -> None:
        while len(list(folder.iterdir())) < len(words):
            time.sleep(0.05)
        for _ in range(times):
            os.kill(os.getpid(), number)
            time.sleep(0.3)

    environments = [{**os.environ, "RANK": str(rank), "WORLD_SIZE": str(len(words))} for rank in range(len(words))]
    with caught_signals() as received:
        if number:
            threading.Thread(target=send, daemon=True).start()
        return run_workers([sys.executable, "-c", WORKER, str(folder), *words], environments, save_s, received)
