"""Files that grow by whole lines: a kill can tear only the last line, and a torn line is cut off, never read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from core.errors import cannot_write
from core.storage import publish_bytes
from core.sync import sync


def append_line(path: Path, line: str) -> None:
    """Add one line in a single write, so that it outlives the process; a torn one before it is cut off first.

    Raises:
        StorageError: the disk is full or cannot be written.
    """
    assert "\n" not in line
    try:
        cut_torn_line(path)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            data = f"{line}\n".encode()
            while data:  # a disk that becomes full takes a part, and says so only when asked again
                data = data[os.write(descriptor, data) :]
        finally:
            os.close(descriptor)
    except OSError as error:
        raise cannot_write(path, error) from error


def read_lines(path: Path) -> list[str]:
    """The whole lines, without their ends; none where there is no file."""
    if not path.exists():
        return []
    *whole, _ = path.read_bytes().split(b"\n")  # the torn rest may end within a letter
    return [line.decode() for line in whole]


def cut_torn_line(path: Path) -> None:
    """Drop what follows the last line end."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with open(path, "rb+") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) == b"\n":
            return
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


def fsync(path: Path) -> None:
    """Make what was appended survive the machine, not just the process."""
    if path.exists():
        try:
            sync(path)
            sync(path.parent)  # the first line made the file
        except OSError as error:
            raise cannot_write(path, error) from error


def append_json(path: Path, record: Mapping[str, Any]) -> None:
    """Add one record to a `.jsonl` file."""
    append_line(path, json.dumps(record, ensure_ascii=False))


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a `.jsonl` file."""
    return [json.loads(line) for line in read_lines(path)]


def keep_records(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Rewrite a `.jsonl` file, whole, with the wanted records only."""
    lines = [line for line in read_lines(path) if wanted(json.loads(line))]
    if path.exists():
        publish_bytes("".join(f"{line}\n" for line in lines).encode(), path)
