"""A file's bytes, memory-mapped: read where they are looked at."""

from __future__ import annotations

import mmap
from pathlib import Path


def mapped(path: Path) -> memoryview:
    """The bytes of the file; unmapped when the last slice is gone."""
    with open(path, "rb") as file:
        if path.stat().st_size == 0:
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
