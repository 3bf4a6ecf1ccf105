"""Start training processes under Accelerate, in its own words, and pass their exit code on."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from core.errors import ConfigError
from trainer.signals import REQUEUE_EXIT_CODE

TRAINING_MODULE = "launch.train"


def launch_training(arguments: Sequence[str], num_processes: int | None, accelerate_config: Path | None) -> int:
    """What `accelerate launch -m launch.train ...` does, without its stack traces; returns the exit code.

    Args:
        arguments: recipe and overrides for `launch.train`.
        num_processes: on this machine; None for one per GPU, or one on the CPU.
        accelerate_config: a file of `launch/accelerate/` or of `accelerate config`; it decides alone.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    options = _accelerate_options(num_processes, accelerate_config)
    parsed = launch_command_parser().parse_args([*options, "--module", TRAINING_MODULE, *arguments])
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # our processes say what went wrong
    try:
        launch_command(parsed)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except subprocess.CalledProcessError as error:
        return error.returncode if error.returncode > 0 else 128 - error.returncode
    except SignalException:
        return REQUEUE_EXIT_CODE  # passed on to the processes, which saved and ended
    return 0


def _accelerate_options(num_processes: int | None, accelerate_config: Path | None) -> list[str]:
    import torch

    if accelerate_config is not None:
        if not accelerate_config.is_file():
            raise ConfigError(f"{accelerate_config}: no such file. Examples are in launch/accelerate/.")
        return ["--config_file", str(accelerate_config)]
    gpus = torch.cuda.device_count()
    processes = num_processes or max(gpus, 1)
    if gpus and processes > gpus:
        raise ConfigError(f"--processes {processes}: this machine has {gpus} GPUs. Ask for at most {gpus}.")
    options = ["--num_processes", str(processes), "--num_machines", "1", "--mixed_precision", "no"]
    options += ["--dynamo_backend", "no"]
    if not gpus:
        # `accelerate launch --cpu` starts one process whatever is asked for; this starts gloo processes.
        os.environ["ACCELERATE_USE_CPU"] = "true"
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    if processes > 1:
        options += ["--multi_gpu", "--main_process_port", "0"]  # any free port
    return options
