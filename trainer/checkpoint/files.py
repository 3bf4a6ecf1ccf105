"""The files of one checkpoint folder: their manifest of hashes, and reading nothing that does not match it."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from core.errors import CheckpointError
from core.fields import fill

if TYPE_CHECKING:
    from trainer.checkpoint.tensor_tree import Pieces

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
REMEDY = "Use the version that wrote it, or train again."
_UNDECODABLE = (ValueError, KeyError, TypeError, AttributeError, IndexError, struct.error, SafetensorError)


@dataclass(frozen=True)
class FileEntry:
    """One file of a checkpoint."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class CheckpointManifest:
    """All that readers believe about a checkpoint."""

    files: dict[str, FileEntry]
    is_best: bool = False  # when it was saved
    format_version: int = FORMAT_VERSION

    def entry(self, path: Path, name: str) -> FileEntry:
        """What it says of one file.

        Raises:
            CheckpointError: the checkpoint has no such file; names it.
        """
        if name not in self.files:
            raise CheckpointError(f"{path}: has no {name}, so it was written by another version. {REMEDY}")
        return self.files[name]


def damage(path: Path) -> str | None:
    """A sentence naming the first file that is missing or altered, or None for a whole checkpoint."""
    try:
        for name, entry in read_manifest(path).files.items():
            read_verified(path, name, entry)
    except CheckpointError as error:
        return str(error)
    return None


def manifest_bytes(files: Mapping[str, Pieces], step: int, is_best: bool) -> bytes:
    """The manifest of the given contents, signed with its own hash."""
    entries = {name: asdict(_entry(pieces)) for name, pieces in files.items()}
    return _sign({"format_version": FORMAT_VERSION, "step": step, "is_best": is_best, "files": entries})


def read_manifest(path: Path) -> CheckpointManifest:
    """The verified manifest of a checkpoint folder; CheckpointError names what is wrong with it."""
    file = path / MANIFEST
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such checkpoint.")
    data = _read(file)
    try:
        manifest: dict[str, Any] = json.loads(data)
        body = {key: value for key, value in manifest.items() if key != "sha256"}
        intact = _sign(body) == data  # byte for byte, so that no flipped bit is left to the JSON parser's taste
    except (ValueError, AttributeError):
        intact = False
    if not intact:
        raise CheckpointError(f"{file}: damaged (its content does not match its own hash).")
    if body.get("format_version", 0) > FORMAT_VERSION:
        raise CheckpointError(f"{file}: written by a newer shardclip (format {body['format_version']}). Update.")
    if "files" in body:
        entries = body["files"].items()
        body["files"] = {name: fill(FileEntry, entry, str(file), CheckpointError, REMEDY) for name, entry in entries}
    return fill(CheckpointManifest, body, str(file), CheckpointError, REMEDY)


def read_verified(path: Path, name: str, entry: FileEntry) -> bytes:
    """The very bytes that were written; CheckpointError names the file that is missing, cut short or altered."""
    file = path / name
    data = _read(file)
    if len(data) != entry.bytes:
        raise CheckpointError(f"{file}: damaged ({len(data)} bytes, {entry.bytes} were written).")
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise CheckpointError(f"{file}: damaged (its sha256 is not the one in {MANIFEST}).")
    return data


def decoded(file: Path, decode: Callable[[bytes], Any], data: bytes) -> Any:
    """What `decode` makes of verified bytes.

    Raises:
        CheckpointError: it cannot: another version wrote them in another form.
    """
    try:
        return decode(data)
    except _UNDECODABLE as error:
        what = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{file}: is of another version's form ({what}). {REMEDY}") from error


def write_files(folder: Path, files: Mapping[str, Pieces]) -> None:
    """Write every content under its name."""
    for name, pieces in files.items():
        with open(folder / name, "wb") as file:
            for piece in pieces:
                file.write(piece)


def forget_cached_pages(path: Path) -> None:
    """Let the next read of the folder come from the disk."""
    # Otherwise reading back would compare memory with memory. Not every system has the call.
    if hasattr(os, "posix_fadvise"):
        for file in path.iterdir():
            descriptor = os.open(file, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def _entry(pieces: Pieces) -> FileEntry:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return FileEntry(sum(map(len, pieces)), digest.hexdigest())


def _sign(manifest: Mapping[str, Any]) -> bytes:
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**manifest, "sha256": digest}, indent=1, sort_keys=True) + "\n").encode()


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{file}: damaged (the file is missing).") from None
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror or error}).") from error
