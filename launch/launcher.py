"""Start training processes as Accelerate expects to find them, on one machine or several; pass their exit code on.

`accelerate launch -m launch.train` starts the same processes. It turns every exit code into 1 and dies of SIGUSR1,
which no scheduler can work with; so `shardclip train` starts them itself.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from core.cores import available_cores
from core.errors import ConfigError
from launch.machines import Words

TRAINING, EVALUATION = "launch.train", "launch.evaluate"  # what a process runs
SAVE_VARIABLE = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"  # torchrun's and `accelerate launch`'s name for the same time
SAVE_S = 600


def launch(module: str, arguments: Sequence[str], words: Words) -> int:
    """Run the processes of this machine that train or evaluate together to their end; returns the exit code.

    One process alone takes this one's place, so signals reach it and its exit code is this command's. Several are
    told of SIGTERM, SIGUSR1 and Ctrl-C, and have 600 s to save, or what `TORCH_ELASTIC_SHUTDOWN_TIMEOUT` says.

    Args:
        module: `TRAINING` or `EVALUATION`.
        arguments: recipe and overrides.

    Raises:
        ConfigError: the words do not fit this machine, or what the other machines were told.
    """
    import torch

    from launch.meeting import meet
    from launch.workers import caught_signals, run_workers
    from trainer.guard.signals import REQUEUE_EXIT_CODE, hold_interrupts

    save_s = _save_s()
    gpus, machines = torch.cuda.device_count(), words.machines
    processes = max(gpus, 1) if words.processes is None else words.processes
    environment = dict(words.environment)
    if gpus and processes > gpus and "ACCELERATE_USE_CPU" not in environment:
        raise ConfigError(f"--processes {processes}: this machine has {gpus} GPUs. Ask for at most {gpus}.")
    if not gpus:
        environment["ACCELERATE_USE_CPU"] = "true"
    # Validation and saving use the cores of all ranks; torchrun would leave each a single thread.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // processes)))
    os.environ.update(environment)
    command = [sys.executable, "-m", module, *arguments]
    if processes * machines.count == 1:
        sys.stdout.flush()
        with hold_interrupts():
            os.execv(sys.executable, command)
    if gpus > 1:
        _mind_consumer_cards()
    meeting = meet(machines, processes)
    environments = [
        {**os.environ, "RANK": str(machines.rank * processes + local), "LOCAL_RANK": str(local)}
        | {"WORLD_SIZE": str(processes * machines.count), "LOCAL_WORLD_SIZE": str(processes)}
        | {"MASTER_ADDR": machines.host, "MASTER_PORT": str(meeting.port)}
        | {"TORCHELASTIC_USE_AGENT_STORE": "True"}  # the store is served by the command, not by process 0
        for local in range(processes)
    ]
    with caught_signals() as received:
        code = run_workers(command, environments, save_s, received)
        if code in (0, REQUEUE_EXIT_CODE):
            meeting.part()
    return code


def _save_s() -> float:
    told = os.environ.get(SAVE_VARIABLE, str(SAVE_S))
    if not told.isdigit():
        raise ConfigError(f"{SAVE_VARIABLE} is '{told}': give whole seconds, as many as the scheduler gives.")
    return float(told)


def _mind_consumer_cards() -> None:
    """RTX 40 cards with older drivers hang in NCCL's fast paths; `accelerate launch` turns these off as well."""
    from accelerate.utils import check_cuda_p2p_ib_support

    if not check_cuda_p2p_ib_support():
        os.environ.setdefault("NCCL_P2P_DISABLE", "1")
        os.environ.setdefault("NCCL_IB_DISABLE", "1")
