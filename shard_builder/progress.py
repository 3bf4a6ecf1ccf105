"""What a long job shows: a bar with rate and time left, and a build's figures at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from core.manifest import Manifest
from core.spoken import counted


@contextmanager
def progress_bar(console: Console, unit: str, total: int | None, done: int = 0) -> Iterator[Callable[[int], None]]:
    """A bar; the function it gives is told how many units are done altogether."""
    columns = (
        TextColumn("{task.description:>9}", table_column=Column(no_wrap=True)),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(unit),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(unit, total=total, completed=done)
        yield lambda position: progress.update(task, completed=position)


class _Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__(table_column=Column(no_wrap=True))
        self._unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} {self._unit}/s" if speed else "", style="cyan")


def summary_table(manifest: Manifest, rows: Iterable[tuple[str, str]]) -> Table:
    """A build's figures: in, out, left out by reason, then `rows`."""
    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_column(style="dim", justify="right")
    table.add_column()
    table.add_row("inputs", f"{manifest.num_inputs:,}")
    table.add_row("samples", f"{manifest.num_samples:,} in {counted(len(manifest.shards), 'shard')}")
    for reason, count in manifest.skipped.items():
        table.add_row("left out", f"[yellow]{count:,} {escape(reason)}[/]")
    table.add_row("captions", f"{manifest.num_captions:,}")
    if manifest.num_cut_captions:
        cut = f"[yellow]{manifest.num_cut_captions:,} are longer than the text encoder takes[/]"
        table.add_row("cut", f"{cut}, which reads their beginning: cut_captions.jsonl names them")
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def spoken_bytes(count: float) -> str:
    """`12.3 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def spoken_seconds(seconds: float) -> str:
    """`12 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
