"""The default engine: worker processes on this machine, each a fresh interpreter without torch.

Own processes rather than `multiprocessing`: its spawn imports the parent's `__main__` again in every worker (for the
command line that means torch), and its pools hang when a worker is killed.
"""

from __future__ import annotations

import mmap
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, TypeVar

from core.errors import ConfigError, ShardclipError
from shard_builder.engines.worker import SLOT_BYTES

PILLOW_SIMD_VARIABLE = "SHARDCLIP_PILLOW_SIMD"
POLL_S = 0.1
_PROGRAM = "from shard_builder.engines.worker import main; main()"


class Task(Protocol):
    """Anything that can be pickled and can say what it is."""

    @property
    def name(self) -> str: ...

    def describe(self, position: int) -> str:
        """The task's part at `position`, for an error message."""
        ...


T = TypeVar("T", bound=Task)


def pillow_simd_folder() -> Path | None:
    """The folder that holds pillow-simd: beside this Python's packages, or where SHARDCLIP_PILLOW_SIMD says.

    It has a folder of its own because torchvision asks for Pillow: one installed over the other is a mixture.
    An empty SHARDCLIP_PILLOW_SIMD means plain Pillow.
    """
    named = os.environ.get(PILLOW_SIMD_VARIABLE)
    if named == "":
        return None
    folder = Path(named) if named else Path(sys.prefix) / "lib" / "shardclip-pillow-simd"
    if (folder / "PIL").is_dir():
        return folder.absolute()
    if named:
        raise ConfigError(f"{PILLOW_SIMD_VARIABLE} is {named}: no PIL is there. Correct or unset it.")
    return None


class ProcessesEngine:
    """Worker processes, started when the first work arrives; leaving the `with` block ends them.

    Args:
        workers: at most so many.
        pillow_simd: let the workers import pillow-simd where it is installed; false: plain Pillow, which is slower
            but knows WebP and AVIF everywhere.
    """

    def __init__(self, workers: int, pillow_simd: bool = True) -> None:
        self._limit = workers
        self._path_first = pillow_simd_folder() if pillow_simd else None
        self._workers: list[_Worker] = []
        self._board_file = _memory_file()
        self._board_file.truncate(workers * SLOT_BYTES)
        self._board = mmap.mmap(self._board_file.fileno(), 0)

    def __enter__(self) -> ProcessesEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.stop()
        self._workers.clear()

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run `function(*arguments)` in one worker and wait for its result."""
        worker = self._started(1)[0]
        worker.send((function, arguments, False))
        return worker.receive(function.__name__)

    def run(
        self, function: Callable[[T, Callable[[int], None]], Any], tasks: Iterable[T], progress: Callable[[int], None]
    ) -> Iterator[tuple[T, Any]]:
        """Yield `(task, function(task, report))` as they finish, in any order.

        Args:
            function: importable by name; calls `report(n)` when `n` parts of its task are done.
            progress: told now and then how many parts of all tasks are done.

        Raises:
            ShardclipError: raised by the function, or a worker died.
        """
        waiting = list(tasks)[::-1]
        idle = self._started(min(len(waiting), self._limit))
        busy: dict[Connection, tuple[_Worker, T]] = {}
        finished = 0
        while waiting or busy:
            while waiting and idle:
                worker, task = idle.pop(), waiting.pop()
                worker.send((function, (task,), True))
                busy[worker.connection] = (worker, task)
            answered = set(wait(list(busy), POLL_S))
            for connection in [c for c in busy if c in answered]:
                worker, task = busy.pop(connection)
                position = self._position(worker)
                result = worker.receive(f"{task.name}: {task.describe(position)}")
                finished += position
                idle.append(worker)
                yield task, result
            progress(finished + sum(self._position(worker) for worker, _ in busy.values()))

    def _started(self, count: int) -> list[_Worker]:
        for slot in range(len(self._workers), count):
            self._workers.append(_start(slot, self._board_file.fileno(), self._path_first))
        return self._workers[:count]

    def _position(self, worker: _Worker) -> int:
        return int.from_bytes(self._board[worker.slot * SLOT_BYTES : (worker.slot + 1) * SLOT_BYTES], "little")


@dataclass
class _Worker:
    slot: int  # its counter on the board
    process: subprocess.Popen[bytes]
    connection: Connection

    def send(self, request: tuple[Any, ...]) -> None:
        with suppress(OSError):  # it died while idle; `receive` says so
            self.connection.send_bytes(pickle.dumps(request))

    def receive(self, place: str) -> Any:
        """The answer; `place` is where the work stands, for the error if there is none."""
        try:
            kind, *values = pickle.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            raise ShardclipError(f"A worker process {_how_it_ended(self.process)} at {place}.") from None
        if kind == "error":
            error, trace = values
            error.add_note(f"in a worker process at {place}\n{trace}")
            raise error
        return values[0]

    def stop(self) -> None:
        self.connection.close()
        self.process.kill()  # whatever it was writing has a temporary name
        self.process.wait()


def _start(slot: int, board_file: int, path_first: Path | None) -> _Worker:
    ours, theirs = socket.socketpair()
    path = [str(path_first)] if path_first else []
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path + [os.path.abspath(entry) for entry in sys.path]),
        "OMP_NUM_THREADS": "1",
    }
    numbers = [str(theirs.fileno()), str(board_file), str(slot)]
    with theirs, _interrupts_held():
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _PROGRAM, *numbers],
            env=environment,
            pass_fds=(theirs.fileno(), board_file),
        )
    return _Worker(slot, process, Connection(ours.detach()))


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold SIGINT back: a worker inherits that, so that Ctrl-C cannot meet an interpreter that is still starting."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _memory_file() -> IO[bytes]:
    """A file without a name, open as long as someone holds it."""
    if hasattr(os, "memfd_create"):  # a full /tmp is no reason not to build on another disk
        return os.fdopen(os.memfd_create("progress"), "w+b")
    return tempfile.TemporaryFile()


def _how_it_ended(process: subprocess.Popen[bytes]) -> str:
    code = process.wait()
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name
    causes = {"SIGKILL": "killed, often because memory ran out: set fewer `workers`", "SIGSEGV": "crashed"}
    return f"ended with {name}" + (f" ({causes[name]})" if name in causes else "")
