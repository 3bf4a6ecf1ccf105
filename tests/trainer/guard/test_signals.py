"""Stop signals: noted, not acted upon; workers still die; handlers go back."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer.guard.signals import REQUEUE_EXIT_CODE, STOP_SIGNALS, StopRequest

ROOT = Path(__file__).resolve().parents[3]


TWICE = """
import os, signal, sys
from trainer.guard.signals import StopRequest
signal.signal(signal.SIGINT, signal.default_int_handler)
with StopRequest() as stop:
    os.kill(os.getpid(), signal.SIGINT)
    print(stop.requested, stop.reason, flush=True)
    os.kill(os.getpid(), signal.SIGINT)
print("still here")
"""


@pytest.fixture(autouse=True)
def a_terminal() -> Iterator[None]:
    """A shell lets what it starts in the background ignore Ctrl-C, a test run too."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_sets_the_flag_and_a_second_one_changes_nothing(number: signal.Signals) -> None:
    with StopRequest() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested and stop.reason == number.name
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.requested and stop.reason == number.name


def test_the_handlers_before_come_back() -> None:
    before = [signal.getsignal(n) for n in STOP_SIGNALS]
    with StopRequest():
        assert signal.getsignal(signal.SIGTERM) not in before
    assert [signal.getsignal(n) for n in STOP_SIGNALS] == before


def test_a_second_ctrl_c_leaves_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", TWICE], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 130 and done.stdout == "True SIGINT\n"
    first, second = done.stderr.splitlines()
    assert first.startswith("shardclip: stopping") and second.startswith("shardclip: left at once, without saving")


def test_a_ctrl_c_that_the_shell_ignores_stays_ignored() -> None:
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert not stop.requested
    finally:
        signal.signal(signal.SIGINT, previous)


def test_a_forked_worker_still_dies_of_sigterm() -> None:
    with StopRequest() as stop:
        worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        worker.start()
        time.sleep(0.1)
        worker.terminate()
        worker.join(10)
        assert worker.exitcode == -signal.SIGTERM and not stop.requested


def test_a_forked_worker_leaves_a_ctrl_c_to_its_owner() -> None:
    interrupted = multiprocessing.get_context("fork").Event()

    def press() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        interrupted.set()

    with StopRequest() as stop:
        worker = multiprocessing.get_context("fork").Process(target=press)
        worker.start()
        worker.join(10)
    assert worker.exitcode == 0 and interrupted.is_set() and not stop.requested


def test_the_exit_code_asks_for_another_go() -> None:
    assert REQUEUE_EXIT_CODE == os.EX_TEMPFAIL
