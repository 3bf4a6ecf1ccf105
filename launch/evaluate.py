"""One of several processes that evaluate together: `shardclip eval RECIPE --processes 4` starts them.

Exit codes: 0 measured; 2 a mistake, named in one sentence by the first process that meets it; 3 another process was
lost.
"""

from __future__ import annotations

import os
import signal
import sys
from datetime import timedelta
from pathlib import Path

from rich.console import Console

from core.config import load_config
from core.errors import DistributedError, ShardclipError
from trainer.guard.peer_watch import PEER_LOST_EXIT_CODE

_TIMEOUT_S = 1800.0  # that a collective may wait: one process works alone while t-SNE and the like are computed


def main(arguments: list[str]) -> int:
    """Run one process of an evaluation; returns its exit code."""
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    from core.distributed import is_first_to_say, is_main, leave_group
    from eval.config import EvalConfig
    from eval.evaluate import evaluate

    try:
        config = load_config(EvalConfig, Path(arguments[0]), arguments[1:])
        on_cpu = config.device == "cpu" or parse_flag_from_env("ACCELERATE_USE_CPU")
        PartialState(cpu=on_cpu, timeout=timedelta(seconds=_TIMEOUT_S))
        evaluate(config, Console(highlight=False, soft_wrap=True, quiet=not is_main()))
        leave_group()
        return 0
    except DistributedError:  # another one's own sentence says why
        os._exit(PEER_LOST_EXIT_CODE)
    except ShardclipError as error:
        if is_first_to_say(str(error)):
            print(f"shardclip: {error}", file=sys.stderr, flush=True)
        os._exit(2)  # the others may wait for this one: its group cannot be taken down in order


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is kept of an evaluation that is stopped
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    sys.exit(main(sys.argv[1:]))
