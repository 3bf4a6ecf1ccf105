"""Whether a shard's files are those that were written: at a glance, or by every byte."""

from __future__ import annotations

from core.errors import StorageError
from core.manifest import ShardEntry
from core.storage import exists, is_local, join, sha256_of, size


def looks_whole(out: str, entry: ShardEntry) -> bool:
    """Whether tar and index are there, the tar of the right size and the index byte for byte; reads no tar."""
    tar, index = join(out, entry.name), join(out, entry.index_name)
    if not (exists(tar) and exists(index) and size(tar) == entry.bytes):
        return False
    return has_hash(index, entry.index_sha256)


def has_hash(path: str, sha256: str) -> bool:
    """Whether the file, which is there, has this hash; one that the disk does not give back (a bad sector) has not.

    Raises:
        StorageError: a remote file cannot be read now, which says nothing of its bytes.
    """
    try:
        return sha256_of(path) == sha256
    except OSError as error:
        if is_local(path):
            return False
        raise StorageError(f"{path}: cannot be read ({error.strerror or error}). Try again.") from error
