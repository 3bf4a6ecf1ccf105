"""`/` and the home folder as `out` or `run_dir`, in earnest: in a namespace where nothing can be written at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from broken_inputs import words_of, workspace
from command_line import PROGRAM, faults

ROOT = Path(__file__).resolve().parents[2]
READ_ONLY = 'mount --make-rprivate / && mount -o remount,bind,ro / && ! touch {probe} 2>/dev/null && exec "$@"'
COMMANDS = [
    *(["build", "{build}", f"out={place}"] for place in ("/", "//", "/..", "{home}", "{photos}")),
    *(["plan", "{build}", f"out={place}"] for place in ("/", "{home}", "{photos}")),
    *(["build", "{build}", f"cache_dir={place}"] for place in ("/", "{home}")),
    *(["train", "{recipe}", f"run_dir={place}"] for place in ("/", "//", "{home}", "{photos}")),
    *(["train", "{recipe}", f"data.cache_dir={place}"] for place in ("/", "{home}")),
    *(["demo", "--out", place] for place in ("/", "{home}", "{photos}")),
    *(["embed", "{train}", "--cache-dir", place] for place in ("/", "{home}")),
    ["index-shards", "/"],
    ["index-shards", "{home}"],
]  # fmt: skip


def test_nothing_is_written_there(tmp_path: Path) -> None:
    places = workspace(tmp_path / "work")
    lines = [words_of(line, places) for line in COMMANDS]
    (tmp_path / "inputs.json").write_text(json.dumps(lines))
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "HOME": places["home"]}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    shell = ["unshare", "--mount", "bash", "-c", READ_ONLY.format(probe=tmp_path / "probe"), "bash"]
    listed = {place: sorted(os.listdir(place)) for place in ("/", places["home"], places["photos"])}
    try:
        if subprocess.run([*shell, "true"], capture_output=True).returncode:
            pytest.skip("no mount namespace to try it in")
    except FileNotFoundError:
        pytest.skip("no unshare to try it with")
    command = [*shell, sys.executable, "-c", PROGRAM, str(tmp_path / "inputs.json")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    outcomes = json.loads(done.stdout)
    assert len(outcomes) == len(lines) and not [outcome for outcome in outcomes if faults(outcome)]
    for outcome in outcomes:
        said = outcome["err"]
        assert any(why in said for why in ("the root of the file system", "the home folder", "other things")), outcome
    assert {place: sorted(os.listdir(place)) for place in listed} == listed
