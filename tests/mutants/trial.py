"""One trial: a mutant in a copy of the tree, its room's tests in a process that is forked with the libraries loaded."""

from __future__ import annotations

import importlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import Phase, settings

from mutants.places import Mutant
from mutants.rooms import Room

# Imported once: of a room's tests, most of the time would be spent on importing torch. Nothing of ours is among them.
LIBRARIES = ("torch", "torch.utils.data", "torchvision.transforms.v2", "simplejpeg", "fsspec", "xxhash", "yaml")
MEMORY = 24 * 2**30  # bytes of address space: a mutant may ask for any amount


@dataclass(frozen=True)
class Verdict:
    """What became of a trial: the test that failed, "hang" or "crash"; None where all tests passed."""

    found_by: str | None
    wall_s: float
    cpu_s: float


@contextmanager
def copied(root: Path) -> Iterator[Path]:
    """A copy of the tree as git sees it, uncommitted files included: the checkout itself is never changed."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        check=True,
        text=True,
    )
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        for name in filter(None, listed.stdout.split("\0")):
            if (root / name).is_file():
                (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(root / name, Path(folder) / name)
        yield Path(folder)


def load_libraries() -> None:
    """Import what trials share."""
    for name in LIBRARIES:
        importlib.import_module(name)


def try_mutant(copy: Path, room: Room, mutant: Mutant, timeout_s: float) -> Verdict:
    """Change the copy, run the tests, and put the file back."""
    path = copy / mutant.file
    original = path.read_text()
    path.write_text(mutant.source)
    try:
        return run_tests(copy, room, timeout_s)
    finally:
        path.write_text(original)


def run_tests(copy: Path, room: Room, timeout_s: float) -> Verdict:
    """The room's tests on the copy as it is, up to the first failure."""
    notes, start = copy.parent / f"{copy.name}.failed", time.monotonic()
    notes.unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        _run_and_exit(copy, room, notes)
    code, usage = _end_of(pid, start + timeout_s)
    cpu_s, wall_s = usage.ru_utime + usage.ru_stime, time.monotonic() - start
    failed = notes.read_text() if notes.exists() else None
    notes.unlink(missing_ok=True)
    if code is None:
        return Verdict(failed or "hang", wall_s, cpu_s)
    if code < 0:
        return Verdict(failed or f"crash ({signal.Signals(-code).name})", wall_s, cpu_s)
    if code in (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.NO_TESTS_COLLECTED) and not failed:
        raise RuntimeError(f"pytest ended with {code}: {room.tests}\n{(copy / 'output.txt').read_text()[-2000:]}")
    return Verdict(None if code == 0 else failed or f"pytest ended with {code}", wall_s, cpu_s)


def _run_and_exit(copy: Path, room: Room, notes: Path) -> None:
    """In the child: the copy takes the place of the checkout, then pytest."""
    os.setpgid(0, 0)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    os.chdir(copy)
    output = os.open(copy / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1), os.dup2(output, 2)
    libraries = [path for path in sys.path if "site-packages" in path or "lib/python" in path or path.endswith(".zip")]
    sys.path[:] = [str(copy), str(copy / "tests"), *libraries]
    sys.dont_write_bytecode = True  # bytecode is believed by second and size of its source: mutants share both
    os.environ.update(PYTHONPATH=str(copy), PYTHONDONTWRITEBYTECODE="1")
    settings.register_profile(
        "mutants", phases=[Phase.explicit, Phase.generate], derandomize=True, database=None, deadline=None
    )
    settings.load_profile("mutants")

    code = 3
    try:
        arguments = ["-x", "-q", "-p", "no:cacheprovider", *room.tests]
        code = int(pytest.main(arguments, plugins=[_Notes(notes, room.without)]))
    finally:
        os._exit(code)


class _Notes:
    """Writes down the first test that fails, so that a hang after it is not taken for the finder."""

    def __init__(self, path: Path, without: tuple[str, ...]) -> None:
        self._path, self._without = path, without

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if not item.nodeid.split("[")[0].endswith(self._without)]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report)

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.failed and not self._path.exists():
            self._path.write_text(report.nodeid)


def _end_of(pid: int, deadline: float) -> tuple[int | None, resource.struct_rusage]:
    """Exit code, negative for a signal; None: still running at the deadline. Its whole process group ends with it."""
    code: int | None = None
    while time.monotonic() < deadline:
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            break
        time.sleep(0.05)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    if code is None:
        _, _, usage = os.wait4(pid, 0)
    return code, usage
