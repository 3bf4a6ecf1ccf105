"""Save while training goes on: the state is copied at the step, and a thread makes a checkpoint of the copy."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from typing import Any

from core.errors import CheckpointError, ShardclipError
from trainer.checkpoint.snapshot import HostMemory, Snapshot


class Saver:
    """At most one save is under way; the next one waits for it, and none is left out.

    What goes wrong in the thread is kept for whoever waits.
    """

    def __init__(self) -> None:
        self._memory = HostMemory()
        self._thread: threading.Thread | None = None
        self._error: ShardclipError | None = None

    @property
    def has_failed(self) -> bool:
        """Whether `wait` would raise; waits for nothing."""
        return self._error is not None

    def start(self, tree: Any, write: Callable[[Any], None]) -> None:
        """Copy `tree` (nested values with tensors) as it is now, and let `write` have the copy in the background.

        Raises:
            ShardclipError: what the save before it raised.
            ConfigError: there is no memory for the copy.
        """
        self.wait()  # its copy lies where this one goes
        snapshot = self._memory.copy(tree)
        self._thread = threading.Thread(target=self._run, args=(snapshot, write), name="saving")
        self._thread.start()

    def wait(self) -> None:
        """Until nothing is under way.

        Raises:
            ShardclipError: what a save raised; said once.
        """
        error = self.close()
        if error is not None:
            raise error

    def close(self) -> ShardclipError | None:
        """Wait until nothing is under way; returns what a save raised, where nobody was told of it yet."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        return error

    def _run(self, snapshot: Snapshot, write: Callable[[Any], None]) -> None:
        try:
            write(snapshot.tree())
        except ShardclipError as error:
            self._error = error
        except Exception as error:  # every rank must hear of it, and only the product's errors are told to all
            traceback.print_exception(error)
            self._error = CheckpointError(f"A checkpoint could not be saved: {type(error).__name__}: {error}.")
            self._error.__cause__ = error
