"""What torch is told before a run begins: NCCL's watchdog lets the watch over lost processes speak first."""

from __future__ import annotations

import os

import pytest

from trainer.run.accelerator import let_the_watch_speak_first

VARIABLE = "TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC"


@pytest.mark.parametrize("peer_timeout_s", [1.0, 60.0, 400.0])
def test_nccl_aborts_after_the_watch_has_spoken(monkeypatch: pytest.MonkeyPatch, peer_timeout_s: float) -> None:
    monkeypatch.setenv(VARIABLE, "")  # put back afterwards
    del os.environ[VARIABLE]
    let_the_watch_speak_first(peer_timeout_s)
    abort_s = 4 * int(os.environ[VARIABLE]) / 1000
    assert abort_s >= max(60.0, peer_timeout_s + 30)  # never sooner than without us


def test_who_sets_it_decides_and_without_a_watch_nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "7")
    let_the_watch_speak_first(60.0)
    assert os.environ[VARIABLE] == "7"
    del os.environ[VARIABLE]
    let_the_watch_speak_first(0.0)
    assert VARIABLE not in os.environ
