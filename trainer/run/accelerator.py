"""What Accelerate and torch are told before a run begins: precision, timeouts, and how kernels are chosen."""

from __future__ import annotations

import os
import warnings
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, parse_flag_from_env

from core.precision import choose_precision
from trainer.config import TrainConfig

# Of 1 x 1 convolutions in channels_last: the same memory, described in two ways.
_SPURIOUS = "Grad strides do not match bucket view strides"
_ABORT_MARGIN_S = 30.0  # of NCCL's watchdog after the watch over lost processes


def open_accelerator(config: TrainConfig) -> Accelerator:
    """The process's device and process group; collective.

    Raises:
        ConfigError: a precision that the device lacks.
    """
    has_gpu = torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU")
    precision = choose_precision(config.precision, torch.device("cuda" if has_gpu else "cpu"))
    choose_kernels(config.deterministic)
    if config.model.channels_last:
        warnings.filterwarnings("ignore", message=_SPURIOUS)
    let_the_watch_speak_first(config.peer_timeout_s)
    return Accelerator(
        mixed_precision=precision,
        cpu=not has_gpu,
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=timedelta(seconds=config.timeout_s)),
            DistributedDataParallelKwargs(gradient_as_bucket_view=True),
        ],
    )


def let_the_watch_speak_first(peer_timeout_s: float) -> None:
    """Give `trainer.guard.peer_watch` time to name a lost process before NCCL's watchdog aborts this one (SIGABRT).

    NCCL may notice first. Its watchdog then leaves time for dumps, four times this figure (15 s), and aborts; the
    environment decides where it says something else. Read when the process group is made.
    """
    if peer_timeout_s:
        wait_s = max(15.0, (peer_timeout_s + _ABORT_MARGIN_S) / 4)
        os.environ.setdefault("TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC", str(round(1000 * wait_s)))


def choose_kernels(deterministic: bool) -> None:
    """Let cuDNN time its convolutions once and keep the fastest, or take only kernels that always round alike.

    The latter: an operation that has no such kernel ends the run with torch's sentence, which names it.
    """
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.deterministic = deterministic
    torch.use_deterministic_algorithms(deterministic)
    if deterministic:
        # Read by cuBLAS when it is first used: its workspaces then have one size, and its sums one order.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
