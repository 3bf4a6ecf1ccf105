"""SIGTERM, SIGUSR1 and Ctrl-C ask a run to save and leave; the loop looks once a step, so nothing is torn."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

REQUEUE_EXIT_CODE = 75  # EX_TEMPFAIL: saved and stopped on request; start the same command again to continue
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
INTERRUPTED = 128 + signal.SIGINT
_SAVING = "shardclip: stopping: the step ends and all is saved. Ctrl-C again leaves at once.\n"
_LEAVING = "shardclip: left at once, without saving; the same command goes on from the last checkpoint.\n"
_TOO_EARLY = "shardclip: stopped outside of a run: there was nothing to save.\n"


class StopRequest:
    """Catches the stop signals while it is entered (main thread only); leaving puts the old handlers back.

    with StopRequest() as stop:
        for step, batch in ...:
            ...
            if all_reduce_max(stop.requested) ...: save, leave with REQUEUE_EXIT_CODE

    A signal reaches the ranks at different steps: reduce `requested` over them before acting on it. Further signals
    change nothing: a scheduler that sends them in impatience does not cut the checkpoint in the making. But a person's
    second Ctrl-C (SIGINT) leaves at once, with exit code 130; the next start sweeps the checkpoint in the making. A
    SIGINT that the shell has let this process ignore stays ignored.
    """

    def __init__(self) -> None:
        self.requested = False
        self.reason = ""  # name of the first signal
        self._owner = os.getpid()
        self._is_interrupted = False
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopRequest:
        heard = [n for n in STOP_SIGNALS if n != signal.SIGINT or signal.getsignal(n) is not signal.SIG_IGN]
        self._previous = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            if number == signal.SIGINT:
                return  # a terminal tells the owner too, who still needs a loader worker that has just been forked
            # A forked loader worker has inherited this handler: it must still die when it is told to.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if number == signal.SIGINT:
            if self._is_interrupted:
                _leave(_LEAVING)
            self._is_interrupted = True
            _say(_SAVING)
        if not self.requested:
            self.reason = signal.Signals(number).name
        self.requested = True


@contextmanager
def interrupts_leave_quietly() -> Iterator[None]:
    """Before a run is open Ctrl-C has nothing to save: it leaves at once. Also opens what `hold_interrupts` closed."""
    previous = signal.getsignal(signal.SIGINT)
    if previous is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda number, frame: _leave(_TOO_EARLY))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def hold_interrupts() -> Iterator[None]:
    """Start processes within that hear no Ctrl-C until they can answer it; here one that came waits for the end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _leave(sentence: str) -> None:
    _say(sentence)
    os._exit(INTERRUPTED)


def _say(sentence: str) -> None:
    if os.environ.get("LOCAL_RANK", "0") == "0":
        os.write(2, sentence.encode())  # a handler may stand in the middle of a print
