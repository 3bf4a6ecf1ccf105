"""Locks between processes: of a folder, by a file that names its owner; of a moment's work, by waiting for a turn.

The system's own lock (flock) is free as soon as its owner is dead. Disks that have none (Lustre mounted without
`flock`, some network and cloud mounts) say so; there a file that only one process can have created stands in for it.
It names host and process, so that one left behind by a dead process is known for what it is, on that host.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from core.errors import StorageError, cannot_write
from core.sync import make_folder

OWNER_SUFFIX = ".owner"  # of the file that stands in for a lock
TURN_POLL_S = 0.2  # between two looks at it, for whoever waits for a turn
TURN_PATIENCE_S = 3600.0  # then its owner is named, since one in another container cannot be known to be dead
_IS_HELD = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}
_HAS_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EBADF, errno.EINVAL}
_held: set[int] = set()  # descriptors of this process's locks
_warned: set[Path] = set()  # folders of whose disks it has been said


@contextmanager
def lock(path: Path, purpose: str) -> Iterator[None]:
    """Hold a lock file that names its owner; the system frees it when the owner dies, and it leaves no file.

    Processes that are forked meanwhile have no part in it: they may outlive the owner by seconds. On a disk without
    locks, `path` with `.owner` stands in: a killed owner leaves it, and the next one on its host takes it over.

    Raises:
        StorageError: another process holds it, or the disk cannot be written.
    """
    descriptor = _flock(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if descriptor is None:
        with _owned(path.with_name(path.name + OWNER_SUFFIX), purpose, waits=False):
            yield
        return
    try:
        _write_owner(path, descriptor, purpose)
        yield
    finally:
        _let_go(path, descriptor)


@contextmanager
def turn(folder: Path) -> Iterator[None]:
    """Wait until no other process of this machine works in `folder`; a file `.turn` is there meanwhile.

    Raises:
        StorageError: the folder cannot be written; on a disk without locks, nobody gave the turn for an hour.
    """
    descriptor = _flock(folder / ".turn", fcntl.LOCK_EX)  # opened for writing: NFS locks no other descriptor
    if descriptor is None:
        # Each machine has its own: a machine that is gone keeps nobody waiting.
        with _owned(folder / f".turn-{socket.gethostname()}{OWNER_SUFFIX}", "a turn", waits=True):
            yield
        return
    try:
        yield
    finally:
        _let_go(folder / ".turn", descriptor)


def _flock(path: Path, operation: int) -> int | None:
    """The descriptor of the locked file, which still has its name; None where the disk has no locks."""
    while True:
        try:
            make_folder(path.parent)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise cannot_write(path, error) from error
        try:
            fcntl.flock(descriptor, operation)
        except OSError as error:
            owner = os.read(descriptor, 4096).decode(errors="replace")
            os.close(descriptor)
            if error.errno in _IS_HELD:
                raise StorageError(
                    f"{path.parent}: in use by {_spoken_owner(owner)}. Wait for it, or stop it."
                ) from None
            if error.errno not in _HAS_NO_LOCKS:
                raise cannot_write(path, error) from error
            if not owner:
                path.unlink(missing_ok=True)  # it locks nothing there, for nobody
            _warn(path.parent, error)
            return None
        with suppress(FileNotFoundError):
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                _held.add(descriptor)
                return descriptor
        os.close(descriptor)  # the last owner removed the name between our open and our lock


def _let_go(path: Path, descriptor: int) -> None:
    if descriptor in _held:
        _held.remove(descriptor)
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _warn(folder: Path, error: OSError) -> None:
    if folder not in _warned:
        _warned.add(folder)
        warnings.warn(
            f"{folder}: this disk has no locks between processes ({error.strerror}). A file that names its owner "
            "stands in for them; if a machine dies, it may have to be removed by hand.",
            RuntimeWarning,
            stacklevel=1,
        )


@contextmanager
def _owned(path: Path, purpose: str, waits: bool) -> Iterator[None]:
    """Hold a file that was created exclusively, in place of a lock."""
    deadline = time.monotonic() + (TURN_PATIENCE_S if waits else 0)
    while not _create(path, purpose):
        if _take_over(path):
            continue
        if time.monotonic() >= deadline:
            owner = _read_owner(path)
            raise StorageError(
                f"{path.parent}: in use by {_spoken_owner(owner)}. Wait for it, or stop it. "
                f"If it is surely gone, remove {path}."
            )
        time.sleep(TURN_POLL_S)
    creator = os.getpid()
    try:
        yield
    finally:
        if os.getpid() == creator:
            path.unlink(missing_ok=True)


def _create(path: Path, purpose: str) -> bool:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return False
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        _write_owner(path, descriptor, purpose)
        os.fsync(descriptor)  # other machines read it
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
    return True


def _take_over(path: Path) -> bool:
    """Remove the file of an owner that is dead, on this machine; whether the name may be free now."""
    with socket.socket(socket.AF_UNIX) as one_at_a_time:
        try:
            # A name of this machine without a file, free when its process dies. Otherwise the second process to find
            # the owner dead could remove the file of the first one, who lives.
            one_at_a_time.bind(f"\0shardclip-{hashlib.sha256(str(path.resolve()).encode()).hexdigest()}")
        except OSError:
            return False
        owner = _read_owner(path)
        if owner and not _is_dead(owner):
            return False
        if owner:
            path.unlink(missing_ok=True)
        return bool(owner) or not path.exists()


def _read_owner(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return ""


def _is_dead(text: str) -> bool:
    """Whether the owner surely is: it was on this machine, before a restart or as a process that is no more."""
    try:
        owner = json.loads(text)
        host, boot, namespace = owner["host"], owner["boot"], owner["namespace"]
        pid, began = owner["pid"], owner["began"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return False
    here = _whereabouts()
    if host != here["host"] or not here["boot"]:
        return False
    if boot != here["boot"]:  # a restart, unless another machine has the same name
        return bool(here["machine"]) and owner.get("machine") == here["machine"]
    return bool(namespace == here["namespace"] and began != _began(pid))


def _whereabouts() -> dict[str, str]:
    """What tells this machine, its last start and its view of processes from others; empty words where unknown."""
    machine = boot = namespace = ""
    with suppress(OSError):
        machine = Path("/etc/machine-id").read_text().strip()
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")  # containers number their processes anew
    return {"host": socket.gethostname(), "machine": machine, "boot": boot, "namespace": namespace}


def _began(pid: int) -> str:
    """When the process began, in ticks since the machine did; empty where it has ended."""
    try:
        state, *numbers = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return ""
    return numbers[18] if state != "Z" else ""


def _write_owner(path: Path, descriptor: int, purpose: str) -> None:
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    pid = os.getpid()
    owner = json.dumps({"purpose": purpose, "pid": pid, "since": since, "began": _began(pid), **_whereabouts()})
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, owner.encode(), 0)
    except OSError as error:
        raise cannot_write(path, error) from error


def _spoken_owner(text: str) -> str:
    try:
        owner = json.loads(text)
        return f"{owner['purpose']} (process {owner['pid']} on {owner['host']}, since {owner['since']})"
    except (json.JSONDecodeError, KeyError, TypeError):
        return "another process that has just started"


def _let_go_of_locks() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_of_locks)
