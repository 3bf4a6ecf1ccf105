"""How much memory a piece of work takes at its worst, above what the process held before."""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def peak_above(work: Callable[[], T], on_gpu: bool = False) -> tuple[T, int]:
    """Result of `work`, and the most bytes that it held above those held before.

    On a GPU as its allocator counts; else resident memory as the kernel counts (Linux), to about a quarter MiB. Call it
    in a process of its own, warmed up on a small input: libraries keep buffers of their own.
    """
    gc.collect()
    if on_gpu:
        import torch

        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = work()
        torch.cuda.synchronize()
        return result, torch.cuda.max_memory_allocated() - before
    # Memory that was freed but not given back would be used again unseen.
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the kernel's high-water mark becomes what is held now
    before = _status("VmRSS")
    result = work()
    return result, _status("VmHWM") - before


def _status(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"/proc/self/status has no {name}: peak memory can only be measured on Linux.")
    return int(found[1]) * 1024
