"""Train from a recipe: `accelerate launch -m launch.train configs/train/coco2014_resnet50.yaml optim.lr=3e-4`.

Exit codes: 0 trained; 2 a mistake, named in one sentence; 3 another process of the run was lost; 75 stopped on request
(SIGTERM, SIGUSR1) after saving. After 3 and 75, start the same command again to go on.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from core.config import load_config
from core.errors import PeerLostError, ShardclipError


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
        from trainer.open_run import open_run
        from trainer.train import train

        config = load_config(TrainConfig, Path(arguments[0]), arguments[1:])
        run = open_run(config, make_validation)
        started = True
        code = train(run)
        leave_group()
        return code
    except PeerLostError as error:
        from trainer.peer_watch import PEER_LOST_EXIT_CODE

        _say(f"shardclip (process {rank} of {world_size}): {error}")
        os._exit(PEER_LOST_EXIT_CODE)  # the process group cannot be taken down in order: that waits for the lost one
    except ShardclipError as error:
        # Mistakes found while opening are found by every process: one of them speaks.
        if started or rank == 0:
            who = f"shardclip (process {rank} of {world_size})" if started and world_size > 1 else "shardclip"
            _say(f"{who}: {error}")
        if not started:
            leave_group()
        return 2


def _say(sentence: str) -> None:
    sys.stdout.flush()
    print(sentence, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
