"""Memory of a process that computes on the CPU: keep what layers free, instead of fetching it anew from the system."""

from __future__ import annotations

import ctypes
import sys

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
