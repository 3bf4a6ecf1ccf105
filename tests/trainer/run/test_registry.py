"""The registry of runs: a line per run, and no line lost where many write."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

from trainer.run.registry import RegistryLine, read_registry, register_run


def test_the_registry_has_one_line_per_run(tmp_path: Path) -> None:
    register_run(tmp_path, RegistryLine("id1", "first", "running", started="2026-01-01", shards="a, b"))
    register_run(tmp_path, RegistryLine("id2", "second", "running", started="2026-01-02"))
    line = RegistryLine("id1", "first", "finished", "2026-01-01", 0.5, 100, 0.6, 0.7, "a, b", "c0ffee")
    register_run(tmp_path, line)
    lines = read_registry(tmp_path)
    assert [known["run_id"] for known in lines] == ["id1", "id2"]
    assert lines[0]["state"] == "finished" and lines[0]["shards"] == "a, b" and lines[0]["hours"] == "0.5"


def _register(runs_dir: Path, number: int) -> None:
    for step in range(5):
        register_run(runs_dir, RegistryLine(f"id{number}", f"run{number}", "running", str(number), step=step))


def test_runs_that_write_the_registry_together_lose_no_line(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=_register, args=(tmp_path, number)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert [(line["run_id"], line["step"]) for line in read_registry(tmp_path)] == [(f"id{n}", "4") for n in range(4)]
