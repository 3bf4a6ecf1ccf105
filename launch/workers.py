"""Start the training processes of a machine, pass signals on to them, and make one exit code of theirs."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

from trainer.guard.peer_watch import PEER_LOST_EXIT_CODE
from trainer.guard.signals import INTERRUPTED, REQUEUE_EXIT_CODE, STOP_SIGNALS, hold_interrupts

# What reaches this process alone is meant for all; after these there is nothing to save for.
END_SIGNALS = (signal.SIGHUP, signal.SIGQUIT)
FAREWELL_S = 30.0  # for the others to notice, once a process was lost
_POLL_S = 0.1


def run_workers(
    command: Sequence[str], environments: Sequence[Mapping[str, str]], save_s: float, received: Sequence[int]
) -> int:
    """Run a process per environment until all have ended; returns the exit code of them all (`common_code`).

    Each is told of every signal that this process has `received` and will receive (`caught_signals`). None outlives
    the others for long: after a signal, or another one's own error, they have `save_s` seconds to leave; after a loss,
    or once one has left that had no run to save, `FAREWELL_S`. Then they are killed. A second SIGINT is a person who
    does not want to wait: they are killed at once.

    Args:
        environments: one for each process, with its `RANK` and the `WORLD_SIZE`.
    """
    codes: list[int] = []  # as they end
    is_impatient = False
    num_told, deadline = 0, float("inf")
    # A session of their own: what a terminal sends to all comes once, from here.
    with hold_interrupts():
        running = {
            environment["RANK"]: subprocess.Popen(command, env=environment, start_new_session=True)
            for environment in environments
        }
    while running:
        for number in received[num_told:]:
            for process in running.values():
                process.send_signal(number)
            patience_s = save_s if number in STOP_SIGNALS else FAREWELL_S
            deadline, num_told = min(deadline, time.monotonic() + patience_s), num_told + 1
        for rank, process in list(running.items()):
            if (code := process.poll()) is not None:
                del running[rank]
                codes.append(code)
                deadline = min(deadline, time.monotonic() + _patience_s(code, save_s))
                if code < 0 and not is_impatient and -code not in received:
                    _say(f"process {rank} of {environments[0]['WORLD_SIZE']} was ended by {_name(-code)}.")
        if received.count(signal.SIGINT) > 1 and not is_impatient:
            is_impatient = True
            _say("left at once, without saving; the same command goes on from the last checkpoint.")
            for process in running.values():
                process.kill()
        if time.monotonic() > deadline and not is_impatient:
            is_impatient = True
            for rank, process in running.items():
                _say(f"process {rank} of {environments[0]['WORLD_SIZE']} does not leave: it is killed.")
                process.kill()
        time.sleep(_POLL_S)
    return common_code(codes, received)


def common_code(codes: Sequence[int], received: Sequence[int]) -> int:
    """One exit code for processes that ended with `codes`, in this order (below 0: by a signal), after these signals.

    A process's own error (1 with a stack trace, 2 in a sentence) says most; then that a process was lost, whoever
    noticed and however it ended; then that all left on request. Whoever was told to end and did not save in time has
    the signal's code, 128 and its number.
    """
    if received.count(signal.SIGINT) > 1:
        return 128 + signal.SIGINT
    own = [code for code in codes if code > 0 and code not in (PEER_LOST_EXIT_CODE, REQUEUE_EXIT_CODE)]
    is_lost = PEER_LOST_EXIT_CODE in codes or any(code < 0 for code in codes)
    if received and (received[0] in END_SIGNALS or any(-code in (signal.SIGKILL, *received) for code in codes)):
        return 128 + received[0]
    if own:
        return own[0]
    return PEER_LOST_EXIT_CODE if is_lost else max(codes)


def _patience_s(code: int, save_s: float) -> float:
    """How long the others may outlive a process that ended with `code`."""
    if code == 0:
        return float("inf")  # it had nothing left to do: the first process writes the last files
    # Whoever was asked to leave, or ends with an error of its own, may have a checkpoint under way to bring to its end.
    # Whoever left at once (`INTERRUPTED`) had no run to save, and the others wait for it in vain.
    return FAREWELL_S if code < 0 or code in (PEER_LOST_EXIT_CODE, INTERRUPTED) else save_s


@contextmanager
def caught_signals() -> Iterator[list[int]]:
    """The numbers of the signals that come while the block runs; they do nothing else."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    # What nohup or a shell has let this process ignore stays ignored.
    deaf = {n for n in (signal.SIGINT, *END_SIGNALS) if signal.getsignal(n) is signal.SIG_IGN}
    heard = [number for number in (*STOP_SIGNALS, *END_SIGNALS) if number not in deaf]
    previous = {number: signal.signal(number, note) for number in heard}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _name(number: int) -> str:
    return signal.Signals(number).name


def _say(sentence: str) -> None:
    sys.stdout.flush()
    print(f"shardclip: {sentence}", file=sys.stderr, flush=True)
