"""How every command ends: in one sentence and an exit code, never in a stack trace that says nothing to people.

0 done; 1 it found faults (`verify`, `doctor`); 2 a mistake that people can mend; 130 stopped by Ctrl-C. `train` has
further ones (docs/runs.md).
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import typer

from core.errors import ShardclipError

MISTAKE, INTERRUPTED = 2, 128 + signal.SIGINT
# Typer brings a click of its own since 0.16 and names but one of its errors.
_UsageError = cast(type[Exception], typer.BadParameter.__mro__[1])


class Stopped(Exception):
    """Ctrl-C ended a command; the text says what is kept."""


@contextmanager
def kept(what: str | Callable[[], str]) -> Iterator[None]:
    """Around a command's work: Ctrl-C ends it, and this is then said of what it leaves."""
    try:
        yield
    except KeyboardInterrupt:
        raise Stopped(what if isinstance(what, str) else what()) from None


def run(app: Callable[..., Any]) -> None:
    """Run the command line and leave with its exit code; without words it shows the help, which is a mistake too."""
    words = sys.argv[1:]
    try:
        code = app(words or ["--help"], standalone_mode=False)
    except ShardclipError as error:
        _leave(str(error), MISTAKE)
    except Stopped as stopped:
        _leave(f"stopped. {stopped}", INTERRUPTED)
    except (KeyboardInterrupt, typer.Abort):
        _leave("stopped.", INTERRUPTED)
    except _UsageError as error:  # a verb, option or value that typer does not take
        _leave(_sentence_of(error), MISTAKE)
    if code == INTERRUPTED:  # typer's word for a Ctrl-C that nobody has answered
        _leave("stopped.", INTERRUPTED)
    sys.exit(code or (0 if words else MISTAKE))


def _sentence_of(error: Any) -> str:
    message = " ".join(error.format_message().split())
    end = "" if message.endswith((".", "?")) else "."
    return f"{message}{end} See `{error.ctx.command_path if error.ctx else 'shardclip'} --help`."


def _leave(sentence: str, code: int) -> None:
    sys.stdout.flush()
    print(f"shardclip: {sentence}", file=sys.stderr)
    sys.exit(code)
