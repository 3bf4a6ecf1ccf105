"""Add a column to sealed sets: `shardclip column labels SET file=labels.csv`. The sets themselves stay as they are."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from core import parts
from core.column_kind import ColumnKind, ColumnPlan, ColumnWork
from core.columns import (
    FOLDER,
    ColumnHead,
    column_names,
    column_url,
    is_whole,
    load_head,
    publish_column,
    sweep_column,
)
from core.config import Choice, config_diff
from core.errors import ManifestError
from core.locks import lock
from core.places import expect_no_common_folder
from core.shard_set import ShardSet
from core.spoken import counted
from core.storage import is_local, join, local, remove
from shard_builder.progress import progress_bar, spoken_bytes, spoken_seconds

CACHE_DIR = Path("~/.cache/shardclip")
_NOT_COMPARED = ("figures", "files", "format_version")


def make_columns(
    table: Mapping[str, ColumnKind],
    choice: Choice,
    urls: Sequence[str],
    cache_dir: Path = CACHE_DIR,
    console: Console | None = None,
) -> list[ColumnHead]:
    """Make the column that `choice` describes in each of the sets, or find that it is there.

    Raises:
        ConfigError: no such kind or option.
        ManifestError: a set is not there, or has another column of that name.
        StorageError: another process makes this column, or the disk is full; the set is as it was.
    """
    console = console or Console()
    parts.check(table, choice, "column", given=["work"])
    cache_dir = cache_dir.expanduser()
    expect_no_common_folder(cache_dir, "--cache-dir")
    together = [ShardSet.open(url, cache_dir) for url in urls]
    bar = partial(progress_bar, console)
    works = [ColumnWork(shard_set, together, cache_dir, bar) for shard_set in together]
    heads = []
    for work in works:
        started = time.monotonic()
        plan = parts.build(table, choice, "column", work=work)
        heads.append(make_column(work, plan, console, started))
    return heads


def make_column(work: ColumnWork, plan: ColumnPlan, console: Console, started: float) -> ColumnHead:
    """Do what a kind has planned for one set since `started`, unless an equal, whole column is there."""
    head = head_of(plan, work.shard_set.fingerprints[0])
    for note in plan.notes:
        console.print(note)
    with column_lock(work.url, plan.name, work.cache_dir):
        if plan.name in column_names(work.url):
            found = _expect_equal(work.url, head)
            where = column_url(work.url, plan.name)
            if is_whole(work.url, found):
                console.print(f"[green]already there[/]: {escape(where)} holds exactly this.")
                return found
            console.print(f"[yellow]not whole[/]: {escape(where)} lost files, or they are damaged: made again.")
        remove(column_url(work.url, plan.name))  # what has no head, or lost files
        shards = [entry.name for entry in work.shard_set.manifests[0].shards]
        head = publish_column(work.url, head, shards, plan.make())
    console.print(_summary(work.url, head, time.monotonic() - started))
    return head


def head_of(plan: ColumnPlan, fingerprint: str) -> ColumnHead:
    """The plan's head, as it is before the work."""
    origin = json.loads(json.dumps(plan.origin))  # as it comes back from the file
    return ColumnHead(
        plan.name, plan.kind, plan.per, plan.dtype, tuple(plan.shape), origin, fingerprint, tuple(plan.classes)
    )


@contextmanager
def column_lock(url: str, name: str, cache_dir: Path) -> Iterator[None]:
    """Hold the lock of a set's column (of a remote set only on this machine), free of what a killed maker left."""
    if is_local(url):
        path = local(join(url, FOLDER, f".{name}.lock"))
    else:
        path = cache_dir / "locks" / hashlib.sha256(column_url(url, name).encode()).hexdigest()[:16] / "lock"
    column_url(url, name)  # a name that is none ends here
    try:
        with lock(path, f"column {name} of {url}"):
            sweep_column(url, name)
            yield
    except BaseException:
        with suppress(OSError):  # other columns, or others' locks, are in it
            path.parent.rmdir()
        raise


def column_table(url: str) -> Table:
    """A set's columns for people."""
    table = Table("column", "values", "size", "made by", title=escape(url), title_justify="left")
    for name in column_names(url):
        head = load_head(url, name)
        table.add_row(*map(escape, (name, spoken_values(head), spoken_bytes(head.bytes), spoken_origin(head))))
    return table


def spoken_values(head: ColumnHead) -> str:
    """`<f2 (512,) a caption`."""
    return f"{head.dtype}{f' {head.shape}' if head.shape else ''} a {head.per}"


def spoken_origin(head: ColumnHead) -> str:
    """What a column was made by, in one line: `encoder minilm`, `from: json`."""
    if "text_encoder" in head.origin:
        return str(head.text_encoder)
    return ", ".join(f"{key} {_short(value)}" for key, value in head.origin.items() if value is not None)


def _short(value: Any) -> str:
    return str(value.get("name") or value.get("column") or "stored") if isinstance(value, dict) else str(value)


def _expect_equal(url: str, head: ColumnHead) -> ColumnHead:
    found = load_head(url, head.name)
    differences = config_diff(_compared(found), _compared(head))
    if differences:
        raise ManifestError(
            f"{column_url(url, head.name)}: is another column ({'; '.join(differences)}). "
            "Choose another name (name=...) or delete that folder."
        )
    return found


def _compared(head: ColumnHead) -> dict[str, Any]:
    return {f.name: getattr(head, f.name) for f in fields(head) if f.name not in _NOT_COMPARED}


def _summary(url: str, head: ColumnHead, seconds: float) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_column(style="dim", justify="right")
    table.add_column()
    table.add_row("column", escape(f"{head.name}: {spoken_values(head)}"))
    for name, value in head.figures.items():
        if isinstance(value, int | float | str):
            table.add_row(name.replace("_", " "), f"{value:,}" if isinstance(value, int | float) else escape(value))
    table.add_row("size", f"{spoken_bytes(head.bytes)} in {counted(len(head.files), 'file')}")
    table.add_row("time", spoken_seconds(seconds))
    table.add_row("in", escape(column_url(url, head.name)))
    return table
