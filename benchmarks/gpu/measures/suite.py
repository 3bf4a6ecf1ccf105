"""The tests that carry the mark `gpu`, in the environment that is there: only their files are collected."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu.measure import Context, Figures
from benchmarks.measure import ROOT

MARK = "mark.gpu"
_COUNTS = re.compile(r"(\d+) (passed|failed|skipped|error)")


def marked_files() -> list[Path]:
    """Test files in which a test carries the mark."""
    return [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if f"@pytest.{MARK}" in path.read_text()]


def gpu_tests(context: Context) -> Figures:
    """How many of them pass; the log holds pytest's words."""
    files = [str(path.relative_to(ROOT)) for path in marked_files()]
    # Settings of a plugin that is not there would be a warning each.
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-W", "ignore::pytest.PytestConfigWarning", "-p"]
    command += ["no:cacheprovider", f"--basetemp={context.work / 'tests'}", *files]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests")))}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    print(done.stdout, flush=True)
    return {"files": len(files), "exit_code": done.returncode, **counted(done.stdout)}


def counted(output: str) -> Figures:
    """Numbers of passed, failed, skipped tests and errors in pytest's last line."""
    lines = output.strip().splitlines()
    found = {word: int(number) for number, word in _COUNTS.findall(lines[-1] if lines else "")}
    return {
        "passed": found.get("passed", 0), "failed": found.get("failed", 0), "skipped": found.get("skipped", 0),
        "errors": found.get("error", 0),
    }  # fmt: skip
