"""Start training processes as Accelerate expects to find them, on one machine or several; pass their exit code on.

`accelerate launch -m launch.train` starts the same processes. It turns every exit code into 1 and dies of SIGUSR1,
which no scheduler can work with; so `shardclip train` starts them itself.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from core.cores import available_cores
from core.errors import ConfigError

TRAINING_MODULE = "launch.train"
SAVE_VARIABLE = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"  # torchrun's and `accelerate launch`'s name for the same time
SAVE_S = 600


def launch_training(
    arguments: Sequence[str],
    num_processes: int | None,
    accelerate_config: Path | None = None,
    *,
    num_machines: int | None = None,
    machine_rank: int | None = None,
    main_address: str | None = None,
) -> int:
    """Run the training processes of this machine to their end; returns the exit code.

    One process alone takes this one's place, so signals reach it and its exit code is this command's. Several are
    told of SIGTERM and SIGUSR1, and have as many seconds to save as `TORCH_ELASTIC_SHUTDOWN_TIMEOUT` says (600).

    Args:
        arguments: recipe and overrides for `launch.train`.
        num_processes: on this machine; None for one per GPU, or one on the CPU.
        accelerate_config: a file of `launch/accelerate/` or of `accelerate config`, in place of `num_processes`.
        num_machines: each starts the same command; they need as many processes each.
        machine_rank: of this machine, from 0.
        main_address: `HOST` or `HOST:PORT` of machine 0.

    Raises:
        ConfigError: the words do not fit each other, this machine, or what the other machines were told.
    """
    import torch

    from launch.machines import machines_of, meet, plan_of
    from launch.workers import caught_signals, run_workers
    from trainer.guard.signals import REQUEUE_EXIT_CODE

    save_s = _save_s()
    gpus = torch.cuda.device_count()
    if accelerate_config and num_processes is not None:
        raise ConfigError(f"--processes {num_processes}: {accelerate_config} says how many. Give one of the two.")
    environment: dict[str, str] = {}
    if accelerate_config:
        machines, processes, environment = plan_of(accelerate_config, num_machines, machine_rank, main_address)
    else:
        machines = machines_of(num_machines, machine_rank, main_address)
        processes = max(gpus, 1) if num_processes is None else num_processes
        if gpus and processes > gpus:
            raise ConfigError(f"--processes {processes}: this machine has {gpus} GPUs. Ask for at most {gpus}.")
    if processes < 1:
        raise ConfigError(f"--processes {processes}: a machine needs at least one.")
    if not gpus:
        environment["ACCELERATE_USE_CPU"] = "true"
    # Validation and saving use the cores of all ranks; torchrun would leave each a single thread.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // processes)))
    os.environ.update(environment)
    command = [sys.executable, "-m", TRAINING_MODULE, *arguments]
    if processes * machines.count == 1:
        sys.stdout.flush()
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
