"""Let a process stand still inside its work, so that it can be killed there however quick the machine is.

in the process:     hold.stand_still(), or before: hold_at_change(folder, 7, hold)
in the test:        hold.wait(lambda: process.is_alive()), then kill it, or hold.release()
"""

from __future__ import annotations

import _pyio
import builtins
import io
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PATIENCE_S = 120.0
_CHANGES = ("fsync", "rename", "replace", "unlink", "remove", "mkdir", "rmdir")


@dataclass(frozen=True)
class Hold:
    """A place in a process's work; what stands there leaves this file, which must not be there before."""

    file: Path

    @property
    def is_held(self) -> bool:
        return self.file.exists()

    def stand_still(self) -> None:
        """Until the test lets this process go on, or kills it."""
        self.file.touch()
        while not self._released.exists():
            time.sleep(0.002)

    def wait(self, is_running: Callable[[], bool]) -> None:
        """Until the process stands there; it must not end before."""
        deadline = time.monotonic() + PATIENCE_S
        while not self.is_held:
            assert is_running(), "it ended before it came to where it is held"
            assert time.monotonic() < deadline, f"it does not come to {self.file.name}"
            time.sleep(0.001)

    def release(self) -> None:
        self._released.touch()

    @property
    def _released(self) -> Path:
        return self.file.with_suffix(".released")


def hold_at_change(folder: Path, number: int, hold: Hold) -> None:
    """From now on, count what this process changes below `folder`, and stand still before change `number` of it.

    A change is a file opened for writing, written to or synced, and a name made, moved or removed. If it is a write,
    the first half of it is done. For processes that end after the test: nothing is put back.
    """
    counter = _Counter(folder, number, hold)
    for name in _CHANGES:
        setattr(os, name, counter.counted(getattr(os, name)))
    os.open = counter.opened(os.open)
    os.write = counter.written(os.write)
    open_file = io.open

    def opened(file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
        return (_pyio.open if set(mode) & set("wax+") else open_file)(file, mode, *rest, **named)

    builtins.open = io.open = opened  # type: ignore[assignment]


class _Counter:
    def __init__(self, folder: Path, number: int, hold: Hold) -> None:
        self._folder, self._left, self._hold = folder.resolve(), number, hold

    def counted(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *rest: Any, **named: Any) -> Any:
            if self._is_it(path, named.get("dir_fd")):
                self._hold.stand_still()
            return real(path, *rest, **named)

        return call

    def opened(self, real: Callable[..., int]) -> Callable[..., int]:
        def call(path: Any, flags: int, *rest: Any, **named: Any) -> int:
            if flags & (os.O_WRONLY | os.O_RDWR) and self._is_it(path, named.get("dir_fd")):
                self._hold.stand_still()
            return real(path, flags, *rest, **named)

        return call

    def written(self, real: Callable[[int, Any], int]) -> Callable[[int, Any], int]:
        def call(descriptor: int, data: Any) -> int:
            if not self._is_it(descriptor, None):
                return real(descriptor, data)
            done = real(descriptor, bytes(data)[: len(data) // 2])
            self._hold.stand_still()
            return done

        return call

    def _is_it(self, path: Any, dir_fd: int | None) -> bool:
        """Whether this is the change to stop at; counts it."""
        if self._left <= 0:
            return False
        if isinstance(path, int):
            place = _path_of(path)
        else:
            place = os.path.join(_path_of(dir_fd) if dir_fd is not None else os.getcwd(), os.fsdecode(path))
        if not Path(place).is_relative_to(self._folder):
            return False
        self._left -= 1
        return self._left == 0


def _path_of(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")
