"""The errors that people can mend: each message is one sentence saying what, where and what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

_MAKE_ROOM = "Free space on that disk and start the same command again: it goes on from what is finished."
_REMEDIES = {
    errno.ENOSPC: _MAKE_ROOM,
    errno.EDQUOT: _MAKE_ROOM,
    errno.EFBIG: "Raise the limit on the size of files (`ulimit -f`) and start the same command again.",
}


class ShardclipError(ValueError):
    """A mistake in input, settings or files; the command line prints the message alone and exits with 2."""


class ConfigError(ShardclipError):
    """A recipe or an override is wrong."""


class StorageError(ShardclipError):
    """A file or folder is missing, locked, or cannot be written."""


class ManifestError(ShardclipError):
    """A shard set's manifest is missing, damaged, or of another kind than asked for."""


class DamagedError(ShardclipError):
    """Bytes on disk are not the bytes that were written."""


class DataError(ShardclipError):
    """Input data does not fit what was asked of it."""


class WeightsError(ShardclipError):
    """Pretrained weights are missing, not the expected ones, or do not fit the model."""


class CheckpointError(ShardclipError):
    """A checkpoint is damaged or belongs to another model."""


class DistributedError(ShardclipError):
    """The processes of a run do not compute what one process would."""


class PeerLostError(ShardclipError):
    """Another process of the run was killed, stopped, or has ended with an error."""


class DivergedError(ShardclipError):
    """Training does not lead anywhere: its losses stay without finite value."""


def cannot_write(where: str | Path, error: OSError) -> StorageError:
    """The sentence for a failed write: what, where, what to do."""
    remedy = _REMEDIES.get(error.errno or 0, "Check that disk, and who may write there.")
    return StorageError(f"{where}: cannot be written ({error.strerror or error}). {remedy}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error sentence: the nearest valid name, or all of them when none is near."""
    options = sorted(known)
    near = get_close_matches(name, options, n=1, cutoff=0.6)
    if near:
        return f" Did you mean '{near[0]}'?"
    return f" Known: {', '.join(options)}." if options else ""
