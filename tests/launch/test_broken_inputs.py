"""Mistakes of all verbs end in one sentence, without torch, and leave nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from broken_inputs import inputs, words_of, workspace
from photo_folders import folder_bytes

ROOT = Path(__file__).resolve().parents[2]
# Each input in this one process, as `main` gets it: what it said, how it left, how long it took.
PROGRAM = """
import contextlib, io, json, sys, time
from launch import cli
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "transformers", "accelerate", "matplotlib"):
            raise AssertionError(f"{name} was to be loaded")
sys.meta_path.insert(0, NoTorch())  # nothing starts, whatever is overlooked
outcomes = []
for words in json.load(open(sys.argv[1])):
    out, err, code = io.StringIO(), io.StringIO(), 0
    sys.argv, began = ["shardclip", *words], time.perf_counter()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as leaving:
            code = leaving.code or 0
        except BaseException as error:
            code = f"{type(error).__name__}: {error}"
    seconds = time.perf_counter() - began
    outcomes.append(dict(words=words, code=code, out=out.getvalue(), err=err.getvalue(), s=seconds))
print(json.dumps(outcomes))
"""
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


def faults(outcome: dict) -> list[str]:
    """What is wrong with how a mistake was answered."""
    said = outcome["err"].strip()
    found = []
    if outcome["code"] not in (1, 2):
        found.append(f"left with {outcome['code']}")
    if "Traceback" in outcome["out"] + said:
        found.append("a traceback")
    if outcome["code"] == 2 and (not said.startswith("shardclip: ") or "\n" in said):
        found.append("not one sentence")
    if outcome["code"] == 1 and not outcome["out"].strip():
        found.append("said nothing")
    return found


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
