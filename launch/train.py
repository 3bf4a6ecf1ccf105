"""Train from a recipe: `accelerate launch -m launch.train configs/train/coco2014_resnet50.yaml optim.lr=3e-4`.

Exit codes: 0 trained; 2 a mistake, named in one sentence; 3 another process of the run was lost; 75 stopped on request
(SIGTERM, SIGUSR1, Ctrl-C) after saving; 130 left at once, by a second Ctrl-C or one before the run was open. After 3
and 75, start the same command again to go on.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from core.config import load_config
from core.errors import PeerLostError, ShardclipError
from trainer.guard.signals import interrupts_leave_quietly


def main(arguments: list[str]) -> int:
    """Run one process of a training; returns its exit code."""
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if not arguments or arguments[0] in ("-h", "--help"):
        if rank == 0:
            _say("shardclip: usage: accelerate launch -m launch.train RECIPE [key=value ...].")
        return 2
    from core.distributed import leave_group

    started = False
    try:
        from eval.validation import make_validation
        from trainer.config import TrainConfig
        from trainer.run.opening import open_run
        from trainer.train import train

        config = load_config(TrainConfig, Path(arguments[0]), arguments[1:])
        run = open_run(config, make_validation)
        started = True
        code = train(run)
        leave_group()
        return code
    except PeerLostError as error:
        from trainer.guard.peer_watch import PEER_LOST_EXIT_CODE

        _say(f"shardclip (process {rank} of {world_size}): {error}")
        return _leave(PEER_LOST_EXIT_CODE, world_size)
    except ShardclipError as error:
        # Mistakes found while opening are found by every process, at least of a machine: one of them speaks.
        if started or os.environ.get("LOCAL_RANK", "0") == "0":
            who = f"shardclip (process {rank} of {world_size})" if started and world_size > 1 else "shardclip"
            _say(f"{who}: {error}")
        return _leave(2, world_size)


def _leave(code: int, world_size: int) -> int:
    """End a process whose group cannot be taken down in order, since that may wait for the others, with this code."""
    if world_size > 1:
        os._exit(code)
    return code


def _say(sentence: str) -> None:
    sys.stdout.flush()
    print(sentence, file=sys.stderr, flush=True)


if __name__ == "__main__":
    with interrupts_leave_quietly():
        sys.exit(main(sys.argv[1:]))
