"""Stop signals: noted, not acted upon; workers still die; handlers go back."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

import pytest

from trainer.guard.signals import REQUEUE_EXIT_CODE, StopRequest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_sets_the_flag_and_a_second_one_changes_nothing(number: signal.Signals) -> None:
    with StopRequest() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested and stop.reason == number.name
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.requested and stop.reason == number.name


def test_the_handlers_before_come_back() -> None:
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1)]
    with StopRequest():
        assert signal.getsignal(signal.SIGTERM) not in before
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1)] == before


def test_a_forked_worker_still_dies_of_sigterm() -> None:
    with StopRequest() as stop:
        worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        worker.start()
        time.sleep(0.1)
        worker.terminate()
        worker.join(10)
        assert worker.exitcode == -signal.SIGTERM and not stop.requested


def test_the_exit_code_asks_for_another_go() -> None:
    assert REQUEUE_EXIT_CODE == os.EX_TEMPFAIL
