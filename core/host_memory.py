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


def shared_memory(num_bytes: int, page_locked: bool, remedy: str) -> np.ndarray:
    """`(num_bytes,)` uint8, zero, which forked processes share and every view of it keeps alive.

    Shared, since of private pages a forked process would leave the other ones to the GPU.

    Args:
        page_locked: it stays where it is, so that a GPU copies from and to it by itself.
        remedy: ends the sentence of the error.

    Raises:
        ConfigError: the system does not let this process lock so much.
    """
    try:
        memory = mmap.mmap(-1, num_bytes)
    except OSError as error:
        raise ConfigError(f"{num_bytes / 2**20:.0f} MiB of memory cannot be had ({error.strerror})") from error
    array = np.frombuffer(memory, np.uint8)
    if page_locked:
        _page_lock(array, memory, remedy)
    return array


def _page_lock(array: np.ndarray, memory: mmap.mmap, remedy: str) -> None:
    cudart, address = torch.cuda.cudart(), array.ctypes.data
    if int(cudart.cudaHostRegister(address, array.nbytes, 0)) != 0:
        raise ConfigError(f"{array.nbytes / 2**20:.0f} MiB of memory cannot be page-locked. Raise `ulimit -l`{remedy}")

    def unlock(memory: mmap.mmap) -> None:
        cudart.cudaHostUnregister(address)

    # With the array, not with its memory: a map that dies is unmapped before anybody hears of its death. The memory
    # is handed to the call, which keeps it mapped until the call is over.
    weakref.finalize(array, unlock, memory).atexit = False
