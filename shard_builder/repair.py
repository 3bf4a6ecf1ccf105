"""Give a finished set a shard back that it lost: written again from the sources, and taken only if it is the very same.

The shard is written into a folder of temporary names beside the set; each of its files gets its own name, in one step,
once its hash is the manifest's. So the sealed set is never worse than it was, whatever ends the work.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console

from core.errors import DamagedError
from core.manifest import Manifest, ShardEntry
from core.shard_index import ShardIndex, read_index
from core.storage import PARTIAL_PREFIX, exists, is_local, join, local, publish, sha256_of, size
from shard_builder.engines.processes import ProcessesEngine
from shard_builder.progress import progress_bar
from shard_builder.writer import ShardTask, write_shard


def lost_shards(out: str, manifest: Manifest) -> list[ShardEntry]:
    """The shards of which a file is missing or not the one that the manifest names.

    Of a local set every byte is read; of a remote one it is asked whether the files are there, and how long.
    """
    return [entry for entry in manifest.shards if not _is_whole(out, entry)]


def repair(
    out: str, tasks: Mapping[str, ShardTask], lost: Sequence[ShardEntry], engine: ProcessesEngine, console: Console
) -> None:
    """Write the lost shards again and publish them.

    Args:
        tasks: by name, those of the lost shards; where they write to is chosen here.

    Raises:
        DamagedError: shards come out different, once all others are published; they are left as they were, and the
            sentence says of each what differs.
    """
    by_name = {entry.name: entry for entry in lost}
    different: list[str] = []
    with _folder_beside(out) as folder, progress_bar(console, "images", total=None) as show:
        again = [replace(tasks[entry.name], out=str(folder)) for entry in lost]
        for task, result in engine.run(write_shard, again, show):
            entry = by_name[task.name]
            if result.entry is None or result.entry != replace(entry, index="", embeddings=None):
                what = _difference(out, entry, result.entry, folder)
                different.append(
                    f"{join(out, entry.name)}: written again from the sources, it is not what it was ({what})"
                )
                continue
            for name, sha256 in ((entry.name, entry.sha256), (entry.index_name, entry.index_sha256)):
                publish(lambda path, name=name: _copy(folder / name, path), join(out, name), sha256)  # type: ignore[misc]
            console.print(f"[green]repaired[/]: {join(out, entry.name)} is again what the manifest names.")
    if different:
        raise DamagedError(
            f"{'; '.join(sorted(different))}. What differs is not put back: restore it from a copy, or build another "
            "set of what the sources hold now."
        )


def _is_whole(out: str, entry: ShardEntry) -> bool:
    tar = join(out, entry.name)
    if not (exists(tar) and exists(join(out, entry.index_name)) and size(tar) == entry.bytes):
        return False
    return not is_local(out) or (
        _has_hash(tar, entry.sha256) and _has_hash(join(out, entry.index_name), entry.index_sha256)
    )


def _has_hash(path: str, sha256: str) -> bool:
    """Whether a local file has it; one that the disk does not give back (a bad sector) has none."""
    try:
        return sha256_of(path) == sha256
    except OSError:
        return False


def _difference(out: str, entry: ShardEntry, found: ShardEntry | None, folder: Path) -> str:
    """What is other than it was, as far as the manifest and an intact index can say."""
    if found is None:
        return "none of its images can be used any more"
    for name in ("num_samples", "num_captions"):
        if (was := getattr(entry, name)) != (now := getattr(found, name)):
            return f"{now} {name.removeprefix('num_')} instead of {was}"
    index = join(out, entry.index_name)
    others = ""
    if exists(index) and is_local(index) and _has_hash(index, entry.index_sha256):
        others = _other_members(read_index(local(index)), read_index(folder / found.index_name))
    return others or f"sha256 {found.sha256[:12]} instead of {entry.sha256[:12]}"


def _other_members(was: ShardIndex, now: ShardIndex) -> str:
    counts = {
        member.name: int(np.count_nonzero(was.records[:, column]["xxh3"] != now.records[:, column]["xxh3"]))
        for column, member in enumerate(was.members)
    }
    return ", ".join(f"{name} of {count} samples" for name, count in counts.items() if count)


@contextmanager
def _folder_beside(out: str) -> Iterator[Path]:
    """A folder under a temporary name, which the next build sweeps if this one is killed."""
    beside = local(out) if is_local(out) else None
    folder = Path(tempfile.mkdtemp(prefix=f"{PARTIAL_PREFIX}repair.", dir=beside))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
