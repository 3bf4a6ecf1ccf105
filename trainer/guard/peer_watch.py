"""Notice processes of the run that are gone, and end this one with a sentence that names them.

A collective waits for all ranks: where one is killed, stopped or raises, the others would wait for the process
group's timeout (ten minutes by default) and then name nobody. So a thread of every rank gives signs of life to rank 0,
and rank 0 to it; rank 0 passes on who is gone. A line that closes without a goodbye is a process that was killed; one
that stays silent, a process that was stopped or a machine that is away.
"""

from __future__ import annotations

import os
import selectors
import sys
import threading
import time
import weakref
from collections.abc import Callable
from types import TracebackType

import torch

from core.distributed import rank, world_size
from core.errors import PeerLostError
from trainer.guard.peer_lines import Line, connect, everybody

PEER_LOST_EXIT_CODE = 3
GRACE_S = 5.0  # for the main thread to find out by itself, and to leave in order, once a process is known to be gone
_WATCHES: weakref.WeakSet[PeerWatch] = weakref.WeakSet()


class PeerWatch:
    """Watches the other processes of the group while it is entered (collective); does nothing in a single process.

    Leaving it with a collective's RuntimeError that a lost process has caused raises PeerLostError instead. A main
    thread that does not leave (it waits inside a collective) is ended from here with `PEER_LOST_EXIT_CODE`.

    Args:
        timeout_s: silence after which a process counts as gone; 0 watches nobody. Time in which this process was
            stopped itself does not count: a job that is suspended and continued as a whole goes on.
    """

    def __init__(self, timeout_s: float) -> None:
        self.note: Callable[[str], None] = lambda sentence: None  # where the run writes down why it was ended
        self._timeout_s = timeout_s
        self._lines: dict[Line, float] = {}  # and when each was last heard of, in awake seconds
        self._who: list[str] = []
        self._verdict = ""
        self._has_waited = False  # for somebody to be known lost, in vain
        self._is_known, self._is_left = threading.Event(), threading.Event()
        self._leaves_by_itself = threading.Event()

    def __enter__(self) -> PeerWatch:
        if world_size() > 1 and self._timeout_s:
            hosts, pids = zip(*everybody())
            self._who = [f"process {n} of {len(pids)} ({hosts[n]}, pid {pids[n]})" for n in range(len(pids))]
            self._lines = dict.fromkeys(connect(hosts), 0.0)
            _WATCHES.add(self)
            threading.Thread(target=self._watch, name="peer-watch", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.explain(kind, error, trace)
        finally:
            reason = f"{kind.__name__}: {error}" if kind and not isinstance(error, SystemExit) else None
            for line in self._lines:
                line.send(goodbye=reason)
            self._is_left.set()  # the thread then closes the lines: what ends without a goodbye was killed

    def explain(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """An exit callback: say who is gone, in place of the error of the collective that missed it."""
        # gloo and NCCL raise RuntimeErrors, at about the moment at which the line to the lost process ends.
        is_of_a_collective = isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError)
        if error is not None and not is_of_a_collective:
            self._leaves_by_itself.set()  # it may have a checkpoint to bring to its end, which the others do not await
        if not is_of_a_collective or not self._lines or self._has_waited:
            return
        self._has_waited = True
        if self._is_known.wait(GRACE_S):
            raise PeerLostError(self._verdict) from error

    def hang_up(self) -> None:
        """Close this process's ends: a forked child must not keep its parent's lines open."""
        for line in self._lines:
            line.close()

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for line in self._lines:
                selector.register(line.connection, selectors.EVENT_READ, line)
            self._watch_lines(selector)
        if self._verdict:
            self._end_if_it_hangs()
        self._is_left.wait()
        self.hang_up()

    def _watch_lines(self, selector: selectors.BaseSelector) -> None:
        """Until one is lost, all have said goodbye, or this process leaves."""
        interval_s = min(2.0, self._timeout_s / 5)
        awake_s, woke = 0.0, time.monotonic()
        while selector.get_map() and not self._is_left.is_set() and not self._verdict:
            for line in self._lines:
                line.send()
            next_sign = time.monotonic() + interval_s
            while (rest_s := next_sign - time.monotonic()) > 0 and not self._verdict and selector.get_map():
                for key, _ in selector.select(rest_s):
                    self._lines[key.data] = awake_s
                    if not self._listen(key.data):
                        selector.unregister(key.fileobj)
            now = time.monotonic()
            awake_s, woke = awake_s + min(now - woke, 2 * interval_s), now
            for line in [key.data for key in selector.get_map().values()]:
                if awake_s - self._lines[line] > self._timeout_s:
                    self._lose(line.rank, f"gave no sign of life for {self._timeout_s:g} s: it is stopped, or away")

    def _listen(self, line: Line) -> bool:
        """Take in what has come over a line; returns whether there will be more."""
        messages = line.receive()
        if messages is None:
            self._lose(line.rank, "ended without a word: it was killed, perhaps for want of memory")
            return False
        for message in messages:
            if "gone" in message:
                self._lose(message["gone"], message["why"])
            if message.get("goodbye"):
                self._lose(line.rank, f"ended with {message['goodbye']}")
            if "goodbye" in message:
                return False
        return True

    def _lose(self, lost: int, why: str) -> None:
        if self._verdict or self._is_left.is_set():
            return
        self._verdict = f"{self._who[lost]} {why}. Start the same command again to go on from the last checkpoint."
        self._is_known.set()
        for line in self._lines:
            line.send(gone=lost, why=why)

    def _end_if_it_hangs(self) -> None:
        if self._is_left.wait(GRACE_S) or self._leaves_by_itself.is_set():
            return
        # The folder's disk may hang, or the terminal be gone, with the lost machine: this process ends all the same.
        last_words = threading.Thread(target=self._say_and_note, daemon=True)
        last_words.start()
        last_words.join(GRACE_S)
        os._exit(PEER_LOST_EXIT_CODE)

    def _say_and_note(self) -> None:
        print(f"shardclip ({self._who[rank()].split(' (')[0]}): {self._verdict}", file=sys.stderr, flush=True)
        self.note(self._verdict)


def _hang_up_in_child() -> None:
    for watch in _WATCHES:
        watch.hang_up()


os.register_at_fork(after_in_child=_hang_up_in_child)
