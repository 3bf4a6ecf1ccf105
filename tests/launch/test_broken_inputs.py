"""Mistakes of all verbs end in one sentence, without torch, and leave nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from broken_inputs import inputs, words_of, workspace
from command_line import PROGRAM, faults
from photo_folders import folder_bytes

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = 12  # of all, as commands of their own


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return workspace(tmp_path_factory.mktemp("broken"))


def environment(places: dict[str, str]) -> dict[str, str]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return {**os.environ, "PYTHONPATH": paths, "HOME": places["home"], "COLUMNS": "1000"}


def test_mistakes_end_in_one_sentence_without_torch_and_leave_nothing(places: dict[str, str], tmp_path: Path) -> None:
    lines = [words_of(line, places) for line in inputs()]
    assert len(lines) >= 200 and len({json.dumps(line) for line in lines}) == len(lines)
    before = folder_bytes(places["folder"])
    (tmp_path / "inputs.json").write_text(json.dumps(lines))
    (tmp_path / "here").mkdir()
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "inputs.json")]
    done = subprocess.run(
        command, cwd=tmp_path / "here", env=environment(places), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    wrong = [(outcome["words"], fault, outcome) for outcome in json.loads(done.stdout) for fault in faults(outcome)]
    assert not wrong, "\n".join(f"{words}: {fault}: {outcome}" for words, fault, outcome in wrong[:40])
    after = folder_bytes(places["folder"])
    assert after.keys() - before.keys() == set() and after == before, sorted(after.keys() ^ before.keys())
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.slow
def test_the_same_as_commands(places: dict[str, str], tmp_path: Path) -> None:
    every = len(inputs()) // SAMPLE
    for line in inputs()[::every]:
        words = words_of(line, places)
        done = subprocess.run(
            [sys.executable, "-m", "launch.cli", *words],
            cwd=tmp_path, env=environment(places), capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode in (1, 2) and "Traceback" not in done.stderr, (words, done)
    assert list(tmp_path.iterdir()) == []
