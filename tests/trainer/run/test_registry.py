"""The registry of runs: a line per run, and no line lost where many write."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import gloo
import pytest
from training_runs import recipe, train_worker

from trainer.run import registry
from trainer.run.registry import RegistryLine, read_registry, register_run, why_unregistered


def test_the_registry_has_one_line_per_run(tmp_path: Path) -> None:
    register_run(tmp_path, RegistryLine("id1", "first", "running", started="2026-01-01", shards="a, b"))
    register_run(tmp_path, RegistryLine("id2", "second", "running", started="2026-01-02"))
    line = RegistryLine("id1", "first", "finished", "2026-01-01", 0.5, 100, 0.6, 0.7, shards="a, b", commit="c0ffee")
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


def test_no_registry_is_kept_in_a_folder_that_is_everybodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "ada"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    assert "lies in /, the root of the file system." in str(why_unregistered(Path("/")))
    assert f"lies in {home}, the home folder." in str(why_unregistered(home))
    assert f"lies in {tmp_path}, which holds the home folder" in str(why_unregistered(tmp_path))
    monkeypatch.chdir(home)
    assert "the home folder." in str(why_unregistered(Path("run").parent))
    assert why_unregistered(Path("runs/run").parent) is not None  # it is not there
    (home / "runs").mkdir()
    assert why_unregistered(Path("runs/run").parent) is None
    monkeypatch.setattr(registry.os, "access", lambda path, mode: mode != os.W_OK | os.X_OK)
    assert "which cannot be written" in str(why_unregistered(home / "runs"))


def train_at_home(values: dict[str, Any], home: str) -> int | str:
    os.environ["HOME"] = home
    return train_worker(values)


def test_a_run_directly_in_the_home_folder_leaves_no_registry_there(tmp_path: Path) -> None:
    home = tmp_path / "ada"
    home.mkdir()
    values = recipe(tmp_path, run_dir=home / "run", epochs=1)
    assert gloo.run(1, train_at_home, values, str(home)) == [0]
    assert (home / "run" / "run.json").exists()
    assert [path.name for path in home.iterdir()] == ["run"]
