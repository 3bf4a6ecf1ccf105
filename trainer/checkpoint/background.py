"""Save while training goes on: the state is copied at the step, and a thread makes a checkpoint of the copy."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from trainer.checkpoint.snapshot import HostMemory, Snapshot


class Saver:
    """At most one save is under way; the next one waits for it, and none is left out.

    What goes wrong in the thread is kept for whoever waits.
    """

    def __init__(self) -> None:
        self._memory = HostMemory()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def has_failed(self) -> bool:
        """Whether `wait` would raise; waits for nothing."""
        return self._error is not None

    def start(self, tree: Any, write: Callable[[Any], None]) -> None:
        """Copy `tree` (nested values with tensors) as it is now, and let `write` have the copy in the background.

        Raises:
            BaseException: what the save before it raised.
        """
        self.wait()  # its copy lies where this one goes
        snapshot = self._memory.copy(tree)
        self._thread = threading.Thread(target=self._run, args=(snapshot, write), name="saving")
        self._thread.start()

    def wait(self) -> None:
        """Until nothing is under way.

        Raises:
            BaseException: what a save raised; said once.
        """
        error = self.close()
        if error is not None:
            raise error

    def close(self) -> BaseException | None:
        """Wait until nothing is under way; returns what a save raised, where nobody was told of it yet."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        return error

    def _run(self, snapshot: Snapshot, write: Callable[[Any], None]) -> None:
        try:
            write(snapshot.tree())
        except BaseException as error:
            self._error = error
