"""What torch is told before a run begins: when NCCL's watchdog speaks, and which kernels are taken."""

from __future__ import annotations

import os

import pytest
import torch

from trainer.run.accelerator import choose_kernels, let_the_watch_speak_first

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


def test_kernels_are_the_fastest_or_those_that_round_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    del os.environ["CUBLAS_WORKSPACE_CONFIG"]
    try:
        choose_kernels(deterministic=True)
        assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        choose_kernels(deterministic=False)
    assert not torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.benchmark
