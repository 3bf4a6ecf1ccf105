"""Host memory: what layers on the CPU free is kept, and what a GPU copies from and to is locked in its place."""

from __future__ import annotations

import ctypes
import mmap
import sys
import weakref

import numpy as np
import torch

from core.errors import ConfigError

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Let the C library reuse large blocks within this process; without effect where it is not glibc.

    As glibc comes, every activation above 32 MB is mapped anew and zeroed page by page, which took two thirds of
    MobileNetV2's time at 288 pixels and 100 images (16.5 against 46.8 images/s on one core; docs/log.md).
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt") and hasattr(library, "gnu_get_libc_version"):
        library.mallopt(_M_MMAP_MAX, 0)
        library.mallopt(_M_TRIM_THRESHOLD, -1)


def page_lock(memory: mmap.mmap, otherwise: str) -> None:
    """Keep the memory where it is, for as long as it lives, so that a GPU copies from and to it by itself.

    Shared memory (`mmap.mmap(-1, ...)`): of private pages a forked process would leave the other ones to the GPU.

    Raises:
        ConfigError: the system does not let this process; `otherwise` ends the sentence.
    """
    array = np.frombuffer(memory, np.uint8)
    cudart, address = torch.cuda.cudart(), array.ctypes.data
    if int(cudart.cudaHostRegister(address, array.nbytes, 0)) != 0:
        raise ConfigError(
            f"{array.nbytes / 2**20:.0f} MiB of memory cannot be page-locked. Raise `ulimit -l`{otherwise}"
        )
    weakref.finalize(memory, cudart.cudaHostUnregister, address).atexit = False
