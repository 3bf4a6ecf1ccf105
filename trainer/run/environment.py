"""What a run ran on: hardware, versions, commit and command, as plain values for `environment.json`."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

from core.cores import available_cores
from core.image import imaging_library

PACKAGES = (
    "torch", "torchvision", "accelerate", "transformers", "numpy", "simplejpeg", "pillow", "pillow-simd", "webdataset",
    "safetensors", "wandb", "fsspec", "pycocotools",
)  # fmt: skip


def describe_environment(world_size: int) -> dict[str, Any]:
    """Facts about this machine and this checkout; nothing in it is secret."""
    return {
        "started": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S"),
        "command": sys.orig_argv,
        "world_size": world_size,
        "host": platform.node(),
        "system": platform.platform(),
        "cpu": cpu_model(),
        "cpu_cores": available_cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": gpus(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "python": platform.python_version(),
        "imaging_library": imaging_library(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        **git_state(Path(__file__).parents[1]),
    }


def hardware(environment: dict[str, Any]) -> str:
    """One line: `8 x NVIDIA H100 80GB HBM3` or `2 cores of Intel Xeon, 23.4 GiB`."""
    found = environment["gpus"]
    if found:
        return f"{environment['world_size']} x {found[0]['name']}"
    return f"{environment['cpu_cores']} cores of {environment['cpu']}, {environment['memory_gib']} GiB"


def cpu_model() -> str:
    """The processor's marketing name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def gpus() -> list[dict[str, Any]]:
    """Name and memory of each CUDA device that this process sees."""
    found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [{"name": device.name, "memory_gib": round(device.total_memory / 2**30, 1)} for device in found]


def git_state(folder: Path) -> dict[str, Any]:
    """The commit of a checkout and whether tracked files differ from it; None for both outside one."""
    commit = _git(folder, "rev-parse", "HEAD")
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no") if commit else None
    return {"commit": commit, "uncommitted_changes": None if changed is None else bool(changed)}


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
