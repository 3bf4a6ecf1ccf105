"""Locks between processes: of a folder, by a file that names its owner; of a moment's work, by waiting for a turn."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.errors import StorageError, cannot_write
from core.sync import make_folder

_held: set[int] = set()  # descriptors of this process's locks


@contextmanager
def lock(path: Path, purpose: str) -> Iterator[None]:
    """Hold a lock file that names its owner; the system frees it when the owner dies, and it leaves no file.

    Processes that are forked meanwhile have no part in it: they may outlive the owner by seconds.

    Raises:
        StorageError: another process holds it.
    """
    while True:
        try:
            make_folder(path.parent)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise cannot_write(path, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.read(descriptor, 4096).decode(errors="replace")
            os.close(descriptor)
            raise StorageError(f"{path.parent}: in use by {_spoken_owner(owner)}. Wait for it, or stop it.") from None
        if path.exists() and os.fstat(descriptor).st_ino == path.stat().st_ino:
            break
        os.close(descriptor)  # the last owner removed the name between our open and our lock
    _held.add(descriptor)
    try:
        _write_owner(path, descriptor, purpose)
        yield
    finally:
        if descriptor in _held:
            _held.remove(descriptor)
            path.unlink(missing_ok=True)
            os.close(descriptor)


@contextmanager
def turn(folder: Path) -> Iterator[None]:
    """Wait until no other process of this machine works in `folder`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write_owner(path: Path, descriptor: int, purpose: str) -> None:
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    owner = json.dumps({"purpose": purpose, "pid": os.getpid(), "host": socket.gethostname(), "since": since})
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
