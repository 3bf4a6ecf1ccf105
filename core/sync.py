"""What outlives a power failure: contents of files, names in folders, and folders that are made to last."""

from __future__ import annotations

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Make a file's content last; of a folder, the names in it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make the folder and those above it that are missing; a folder that is there stays."""
    missing = []
    while not path.exists():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        # What is published in the folder is lost with its name: later fsyncs reach the folder, not its parent.
        sync(folder.parent)
