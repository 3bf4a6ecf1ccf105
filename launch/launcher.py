"""Start training processes under Accelerate, in its own words, and pass their exit code on."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from core.config import read_recipe
from core.errors import ConfigError

TRAINING_MODULE = "launch.train"


def launch_training(arguments: Sequence[str], num_processes: int | None, accelerate_config: Path | None) -> int:
    """What `accelerate launch -m launch.train ...` does, without its stack traces; returns the exit code.

    One process takes this one's place, so signals reach it and its exit code is this command's. Several are told of
    SIGTERM and SIGUSR1, and have 30 s to save (torchrun's patience) before they are killed.

    Args:
        arguments: recipe and overrides for `launch.train`.
        num_processes: on this machine; None for one per GPU, or one on the CPU.
        accelerate_config: a file of `launch/accelerate/` or of `accelerate config`; it decides alone.
    """
    import torch

    gpus = torch.cuda.device_count()
    if not gpus:
        # `accelerate launch --cpu` starts one process whatever is asked for; this starts gloo processes.
        os.environ["ACCELERATE_USE_CPU"] = "true"
    processes = _processes_of(accelerate_config) if accelerate_config else num_processes or max(gpus, 1)
    if not accelerate_config and gpus and processes > gpus:
        raise ConfigError(f"--processes {processes}: this machine has {gpus} GPUs. Ask for at most {gpus}.")
    # Validation and saving use the cores of all ranks; torchrun would leave each a single thread.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    if processes == 1:
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, "-m", TRAINING_MODULE, *arguments])
    options = ["--config_file", str(accelerate_config)] if accelerate_config else _options(processes)
    return _launch([*options, "--module", TRAINING_MODULE, *arguments])


def _launch(words: list[str]) -> int:
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # our processes say what went wrong
    signal.signal(signal.SIGUSR1, lambda number, frame: os.kill(os.getpid(), signal.SIGTERM))
    try:
        launch_command(launch_command_parser().parse_args(words))
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


def _processes_of(accelerate_config: Path) -> int:
    if not accelerate_config.is_file():
        raise ConfigError(f"{accelerate_config}: no such file. Examples are in launch/accelerate/.")
    return int(read_recipe(accelerate_config).get("num_processes", 1))


def _options(processes: int) -> list[str]:
    options = ["--num_processes", str(processes), "--num_machines", "1", "--mixed_precision", "no"]
    return [*options, "--dynamo_backend", "no", "--multi_gpu", "--main_process_port", "0"]  # any free port
