"""`metrics.csv` and `pictures.jsonl`: what a run measured, whole after any kill, cut back to the checkpoint on resume.

One line per `log` call: step, samples_seen, time (unix seconds), then a column per metric in order of appearance;
a blank cell was not measured in that line. Lines of the same step belong together (`read_metrics` joins them).
"""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import DamagedError
from core.journal import append_json, append_line, cut_torn_line, fsync, keep_records, read_json_lines, read_lines
from core.storage import publish_bytes
from trainer.trackers.tracker import Metric

METRICS, PICTURES = "metrics.csv", "pictures.jsonl"
FIXED_COLUMNS = ["step", "samples_seen", "time"]


@dataclass(frozen=True)
class Row:
    """All that was measured at one step."""

    step: int
    samples_seen: int
    time: float
    metrics: dict[str, Metric]


@dataclass(frozen=True)
class Picture:
    key: str
    path: Path
    caption: str
    step: int


class MetricsCsv:
    """Appends to a run folder's `metrics.csv` and `pictures.jsonl`.

    Args:
        resumed_from: step of the checkpoint the run continues from; later lines are cut, since their steps are
            taken again. None: nothing that is there counts.
    """

    def __init__(self, run_dir: Path, resumed_from: int | None) -> None:
        self._run_dir, self._path, self._pictures = run_dir, run_dir / METRICS, run_dir / PICTURES
        for path in (self._path, self._pictures):
            cut_torn_line(path)
        last_step = -1 if resumed_from is None else resumed_from
        keep_records(self._pictures, lambda record: bool(record["step"] <= last_step))
        columns, lines = _read_cells(self._path)
        kept = [cells for cells in lines if int(cells[0]) <= last_step]
        self._columns = columns if kept else FIXED_COLUMNS
        publish_bytes(_as_csv([self._columns, *kept]).encode(), self._path)

    def log(self, metrics: Mapping[str, Metric], step: int, samples_seen: int) -> None:
        new = [name for name in metrics if name not in self._columns]
        if new:
            self._add_columns(new)
        cells = {"step": step, "samples_seen": samples_seen, "time": round(time.time(), 3), **metrics}
        append_line(self._path, _as_csv([[_as_cell(cells.get(name, "")) for name in self._columns]])[:-1])

    def log_image(self, key: str, path: Path, caption: str, step: int) -> None:
        place = _within(path, self._run_dir)
        append_json(self._pictures, {"step": step, "key": key, "path": place, "caption": caption})

    def flush(self) -> None:
        fsync(self._path)
        fsync(self._pictures)

    def finish(self, summary: Mapping[str, Any]) -> None:
        self.flush()

    def _add_columns(self, names: Sequence[str]) -> None:
        columns, lines = _read_cells(self._path)
        self._columns = [*columns, *names]
        wider = [cells + [""] * len(names) for cells in lines]
        publish_bytes(_as_csv([self._columns, *wider]).encode(), self._path)


def read_metrics(path: Path) -> list[Row]:
    """The file's steps in order, lines of one step joined; a torn last line left out.

    Raises:
        DamagedError: a line does not fit the header.
    """
    columns, lines = _read_cells(path)
    rows: dict[int, Row] = {}
    for cells in lines:
        step = int(cells[0])
        metrics = {n: _from_cell(c) for n, c in zip(columns[3:], cells[3:], strict=True) if c != ""}
        before = rows[step].metrics if step in rows else {}
        rows[step] = Row(step, int(cells[1]), float(cells[2]), before | metrics)
    return list(rows.values())


def last_step(path: Path) -> int:
    """The step of the last whole line; -1 where nothing was measured yet."""
    return max((int(cells[0]) for cells in _read_cells(path)[1]), default=-1)


def read_pictures(run_dir: Path) -> list[Picture]:
    """The pictures of a run, in the order they were logged."""
    records = read_json_lines(run_dir / PICTURES)
    return [Picture(r["key"], run_dir / r["path"], r["caption"], r["step"]) for r in records]


def history(run_dir: Path) -> Iterator[tuple[int, Row | None, list[Picture]]]:
    """All that a run folder holds of a run's measurements: each step once, in order, with its row and its pictures."""
    rows = {row.step: row for row in read_metrics(run_dir / METRICS)}
    pictures: dict[int, list[Picture]] = {}
    for picture in read_pictures(run_dir):
        pictures.setdefault(picture.step, []).append(picture)
    for step in sorted(rows.keys() | pictures.keys()):
        yield step, rows.get(step), pictures.get(step, [])


def _read_cells(path: Path) -> tuple[list[str], list[list[str]]]:
    table = list(csv.reader(read_lines(path)))
    if not table:
        return FIXED_COLUMNS, []
    columns, *lines = table
    for number, cells in enumerate(lines, 2):
        if columns[:3] != FIXED_COLUMNS or len(cells) != len(columns) or not cells[0].isdecimal():
            raise DamagedError(
                f"{path}: line {number} does not fit the header. Repair it, or delete the file to go on."
            )
    return columns, lines


def _as_csv(lines: Iterable[Sequence[str]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(lines)
    return buffer.getvalue()


def _as_cell(value: Metric) -> str:
    return value.replace("\n", " ") if isinstance(value, str) else json.dumps(value)


def _from_cell(cell: str) -> Metric:
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            continue
    return cell


def _within(path: Path, run_dir: Path) -> str:
    try:
        return path.resolve().relative_to(run_dir.resolve()).as_posix()
    except ValueError:
        return str(path.resolve())  # a contact sheet stays with its shard set
