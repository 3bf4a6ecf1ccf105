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
from rich.markup import escape

from core.errors import DamagedError
from core.manifest import Manifest, ShardEntry
from core.shard_index import ShardIndex, read_index
from core.storage import PARTIAL_PREFIX, exists, is_local, join, local, publish
from shard_builder.engines.processes import ProcessesEngine
from shard_builder.progress import progress_bar
from shard_builder.whole import has_hash, looks_whole
from shard_builder.writer import ShardTask, write_shard


def lost_shards(out: str, manifest: Manifest, checks_bytes: bool, console: Console) -> list[ShardEntry]:
    """The shards of which a file is missing or not the one that the manifest names, in the manifest's order.

    Args:
        checks_bytes: read every tar, which takes as long as the disk does; else tars are known by their sizes alone.
    """
    lost = {entry.name for entry in manifest.shards if not looks_whole(out, entry)}
    if checks_bytes:
        megabytes = np.cumsum([entry.bytes for entry in manifest.shards]) // 10**6
        with progress_bar(console, "MB", total=int(megabytes[-1])) as show:
            for entry, read in zip(manifest.shards, megabytes):
                if entry.name not in lost and not has_hash(join(out, entry.name), entry.sha256):
                    lost.add(entry.name)
                show(int(read))
    return [entry for entry in manifest.shards if entry.name in lost]


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
    total = sum(len(tasks[entry.name].plan.records) for entry in lost)
    with _folder_beside(out) as folder, progress_bar(console, "images", total=total) as show:
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
            console.print(f"[green]repaired[/]: {escape(join(out, entry.name))} is again what the manifest names.")
    if different:
        raise DamagedError(
            f"{'; '.join(sorted(different))}. What differs is not put back: restore it from a copy, or build another "
            "set of what the sources hold now."
        )


def _difference(out: str, entry: ShardEntry, found: ShardEntry | None, folder: Path) -> str:
    """What is other than it was, as far as the manifest and an intact index can say."""
    if found is None:
        return "none of its images can be used any more"
    for name in ("num_samples", "num_captions"):
        if (was := getattr(entry, name)) != (now := getattr(found, name)):
            return f"{now} {name.removeprefix('num_')} instead of {was}"
    index = join(out, entry.index_name)
    others = ""
    if exists(index) and is_local(index) and has_hash(index, entry.index_sha256):
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
