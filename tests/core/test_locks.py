"""A lock names its owner, leaves no file, and is free as soon as its owner is dead; on disks without locks, almost."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import pytest
from process_groups import state_of

from core.errors import StorageError
from core.locks import lock, turn

pytestmark = pytest.mark.filterwarnings("ignore:.*this disk has no locks:RuntimeWarning")


def test_a_lock_names_its_owner_and_leaves_no_file(tmp_path: Path) -> None:
    with lock(tmp_path / ".lock", "building shards"):
        with pytest.raises(StorageError, match=rf"in use by building shards \(process {os.getpid()} on "):
            with lock(tmp_path / ".lock", "another"):
                pass
    assert not list(tmp_path.iterdir())


CHILD = "r, w = os.pipe(); os.fork() or (os.write(w, b'x'), time.sleep(5), os._exit(0)); os.read(r, 1);"


@pytest.mark.parametrize("child", ["", CHILD])  # a loader's worker, which outlives its owner
def test_the_lock_of_a_killed_owner_is_free(tmp_path: Path, child: str) -> None:
    code = "import os,sys,time; from core.locks import lock; from pathlib import Path\n"
    code += f"with lock(Path(sys.argv[1]), 'x'):\n {child} print('held', flush=True); time.sleep(60)"
    owner = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / ".lock")], stdout=subprocess.PIPE)
    assert owner.stdout is not None and owner.stdout.readline() == b"held\n"
    with pytest.raises(StorageError, match=f"process {owner.pid}"):
        with lock(tmp_path / ".lock", "y"):
            pass
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    with lock(tmp_path / ".lock", "y"):
        assert (tmp_path / ".lock").exists()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_disk_without_locks_is_not_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Lustre mounted without flock answers ENOSYS, NFS without its lock daemon ENOLCK."""
    fail_to_lock(monkeypatch, number)
    with pytest.warns(RuntimeWarning, match=f"{re.escape(str(tmp_path))}: this disk has no locks") as said:
        with lock(tmp_path / ".lock", "building shards"):
            assert [path.name for path in tmp_path.iterdir()] == [".lock.owner"]
            whose = rf"in use by building shards \(process {os.getpid()} on .*remove {tmp_path}/.lock.owner"
            with pytest.raises(StorageError, match=whose):
                with lock(tmp_path / ".lock", "another"):
                    pass
    assert len(said) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_lock_that_fails_otherwise_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    fail_to_lock(monkeypatch, number)
    for hold in (lock(tmp_path / ".lock", "x"), turn(tmp_path)):
        with pytest.raises(StorageError, match=f"cannot be written .{os.strerror(number)}"):
            with hold:
                pass


@pytest.mark.parametrize("number", [errno.EWOULDBLOCK, errno.EACCES])
def test_a_held_lock_is_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    fail_to_lock(monkeypatch, number)
    with pytest.raises(StorageError, match="in use by another process that has just started"):
        with lock(tmp_path / ".lock", "x"):
            pass


def test_an_owner_that_was_killed_on_this_machine_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with owner_without_locks(tmp_path) as owner:
        fail_to_lock(monkeypatch, errno.ENOSYS)
        with pytest.raises(StorageError, match=f"process {owner.pid}"):
            with lock(tmp_path / ".lock", "y"):
                pass
        owner.kill()
        wait_for(lambda: state_of(owner.pid) == "Z")  # dead, if nobody has waited for it yet
        assert (tmp_path / ".lock.owner").exists()
        with lock(tmp_path / ".lock", "y"):
            assert json.loads((tmp_path / ".lock.owner").read_text())["pid"] == os.getpid()


@pytest.mark.parametrize(
    ("change", "is_followed"),
    [
        ({"host": "another", "began": "1"}, False),
        ({"namespace": "pid:[1]", "began": "1"}, False),  # of a container whose processes are not seen from here
        ({"boot": "before"}, True),
        ({"began": "1"}, True),  # its number is another process's now
        ({}, False),
    ],
)
def test_only_an_owner_that_is_surely_dead_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, str], is_followed: bool
) -> None:
    with owner_without_locks(tmp_path):
        path = tmp_path / ".lock.owner"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        fail_to_lock(monkeypatch, errno.ENOSYS)
        with nullcontext() if is_followed else pytest.raises(StorageError, match="in use by x"):
            with lock(tmp_path / ".lock", "y"):
                pass


def test_a_forked_child_does_not_free_what_its_parent_owns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_to_lock(monkeypatch, errno.ENOSYS)
    with ExitStack() as held:
        held.enter_context(lock(tmp_path / ".lock", "x"))
        if (child := os.fork()) == 0:
            held.close()
            os._exit(0)
        os.waitpid(child, 0)
        assert (tmp_path / ".lock.owner").exists()


@pytest.mark.parametrize("number", [0, errno.ENOSYS])
def test_turns_are_taken_one_after_the_other(tmp_path: Path, number: int) -> None:
    """Ten processes add one to a number, slowly: without turns they would lose some."""
    (tmp_path / "number").write_text("0")
    adders = [
        subprocess.Popen([sys.executable, "-W", "ignore", "-c", ADD_ONE, str(tmp_path), str(number)]) for _ in range(10)
    ]
    assert [adder.wait(60) for adder in adders] == [0] * 10
    assert (tmp_path / "number").read_text() == "10"
    assert [path.name for path in tmp_path.iterdir()] == ["number"]


def test_a_turn_is_locked_as_nfs_asks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers EBADF to an exclusive lock of a descriptor that is not open for writing."""

    def flock(descriptor: int, operation: int) -> None:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    monkeypatch.setattr(fcntl, "flock", flock)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with turn(tmp_path):
            pass


WITHOUT_LOCKS = """
import errno, fcntl, os, sys, time
from pathlib import Path
from core.locks import lock, turn
def refuse(descriptor, operation):
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
"""
ADD_ONE = f"""{WITHOUT_LOCKS}
folder = Path(sys.argv[1])
if int(sys.argv[2]):
    fcntl.flock = refuse
with turn(folder):
    number = int((folder / "number").read_text())
    time.sleep(0.02)
    (folder / "number").write_text(str(number + 1))
"""
HOLD_IT = f"""{WITHOUT_LOCKS}
fcntl.flock = refuse
with lock(Path(sys.argv[1]), "x"):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def owner_without_locks(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that holds `.lock` in a folder whose disk has no locks."""
    command = [sys.executable, "-W", "ignore", "-c", HOLD_IT, str(folder / ".lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as owner:
        try:
            assert owner.stdout is not None and owner.stdout.readline() == b"held\n"
            yield owner
        finally:
            owner.kill()


def fail_to_lock(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """From now on this disk answers `flock` so."""

    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)


def wait_for(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)
