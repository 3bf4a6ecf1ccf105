"""Tasks for the engine's tests: a worker process imports them by name."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from core.errors import DataError


@dataclass(frozen=True)
class Parts:
    """A task of some parts."""

    name: str
    num_parts: int = 3

    def describe(self, position: int) -> str:
        return f"part {position}"


def count(task: Parts, report: Callable[[int], None]) -> tuple[str, int]:
    for part in range(task.num_parts):
        report(part + 1)
    return task.name, os.getpid()


def sleep(task: Parts, report: Callable[[int], None]) -> None:
    time.sleep(60)


def fail_at_second(task: Parts, report: Callable[[int], None]) -> None:
    report(1)
    raise DataError(f"{task.name} is no good")


def raise_unpicklable(task: Parts, report: Callable[[int], None]) -> None:
    class LocalError(Exception):
        pass

    report(2)
    raise LocalError("odd")


def die_at_second(task: Parts, report: Callable[[int], None]) -> None:
    report(1)
    if task.name == "b":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)


def import_torch(task: Parts, report: Callable[[int], None]) -> None:
    sys.modules.setdefault("torch", sys)  # as good as the real one, and quicker


def modules() -> list[str]:
    return sorted(sys.modules)


def pid() -> int:
    return os.getpid()
