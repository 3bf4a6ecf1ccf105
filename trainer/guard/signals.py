"""SIGTERM and SIGUSR1 ask a run to save and leave; the loop looks once a step, so nothing is torn in the middle."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType

REQUEUE_EXIT_CODE = 75  # EX_TEMPFAIL: saved and stopped on request; start the same command again to continue
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Catches the stop signals while it is entered (main thread only); leaving puts the old handlers back.

    with StopRequest() as stop:
        for step, batch in ...:
            ...
            if all_reduce_max(stop.requested) ...: save, leave with REQUEUE_EXIT_CODE

    A signal reaches the ranks at different steps: reduce `requested` over them before acting on it. Further signals
    change nothing: whoever sends them in impatience does not cut the checkpoint in the making.
    """

    def __init__(self) -> None:
        self.requested = False
        self.reason = ""  # name of the first signal
        self._owner = os.getpid()
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopRequest:
        self._previous = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            # A forked loader worker has inherited this handler: it must still die when it is told to.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if not self.requested:
            self.reason = signal.Signals(number).name
        self.requested = True
