"""What evaluations found, as it is kept: a part of `results.json` each, files of their own, a section of the report."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from core.errors import DataError
from core.storage import publish_bytes
from eval.evaluations import EVALUATIONS
from eval.evaluations.evaluation import Measured, Section
from eval.report.drawing.style import Figure, Theme

FILES = "evaluations"  # the folder of files that evaluations bring


def part_of(found: Measured) -> dict[str, Any]:
    """What `results.json` holds of it, and what its section and charts are made of."""
    intervals = {name: asdict(interval) for name, interval in found.intervals.items()}
    return {"figures": dict(found.figures), "intervals": intervals, **found.shown}


def as_json(value: Any) -> bytes:
    """As it is published.

    Raises:
        DataError: a number is NaN or infinite, which JSON has no word for: other programs could not read the file.
    """
    try:
        return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except ValueError as error:
        where, number = next(_not_finite(value, ()))
        raise DataError(
            f"{' > '.join(where)} is {number}: a figure must be finite. Look for features or weights that are not."
        ) from error


def _not_finite(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], float]]:
    """Where numbers are that JSON cannot hold, and what they are."""
    if isinstance(value, float) and not math.isfinite(value):
        yield path, value
    elif isinstance(value, Mapping):
        for name, own in value.items():
            yield from _not_finite(own, (*path, str(name)))
    elif isinstance(value, list | tuple):
        for number, own in enumerate(value):
            yield from _not_finite(own, (*path, str(number)))


def files_of(measured: Mapping[str, Measured], numbers: Mapping[str, int] | None = None) -> dict[str, Any]:
    """The files that evaluations bring, by name.

    Args:
        numbers: by evaluation, how many sets it has measured before: the second one's files are `same_class.2.json`.
    """
    files: dict[str, Any] = {}
    for evaluation, found in measured.items():
        number = (numbers or {}).get(evaluation, 0)
        for name, value in found.files.items():
            stem, dot, suffix = name.rpartition(".")
            own = f"{stem}.{number + 1}{dot}{suffix}" if number else name
            assert own not in files, f"{evaluation}: another evaluation brings {own}"
            files[own] = value
    return files


def keep_files(files: Mapping[str, Any], folder: Path, step: int | None = None) -> None:
    """Publish them in `folder/evaluations`, or below it by step, without an earlier evaluation's; on one rank."""
    place = folder / FILES / ("" if step is None else f"step-{step:08d}")
    for earlier in place.glob("*.json"):
        if earlier.name not in files:
            earlier.unlink()
    for name, value in files.items():
        publish_bytes(as_json(value), place / name)


@dataclass(frozen=True)
class Shown:
    """An evaluation in the report: `parts` are sets, each with what its section says and the names of its charts."""

    name: str
    title: str
    parts: list[tuple[str, Section, list[str]]]


def sections(results: Mapping[str, Any], charts: Iterable[str]) -> list[Shown]:
    """Of every evaluation that has a section and was measured, in the order of the table; `charts` are those drawn."""
    drawn = list(charts)
    measured = results.get("evaluations", {})
    return [
        Shown(name, kind.title, [_part(name, number, part, drawn) for number, part in enumerate(measured[name])])
        for name, kind in EVALUATIONS.items()
        if kind.title and name in measured
    ]


def unmeasured(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and title of those that have a section, could have been measured without an option, and were not."""
    measured, knows = results.get("evaluations", {}), set(results.get("knows", ()))
    return [
        (name, kind.title)
        for name, kind in EVALUATIONS.items()
        if kind.title
        and name not in measured
        and set(kind.needs) <= knows
        and all(field.default is not MISSING for field in fields(kind))
    ]


def measured_charts(results: Mapping[str, Any], folder: Path, theme: Theme) -> dict[str, Figure]:
    """The charts of all of them; `folder` holds the thumbnails."""
    return {
        chart_key(name, chart, number): figure
        for name, parts in results.get("evaluations", {}).items()
        for number, part in enumerate(parts)
        for chart, figure in EVALUATIONS[name].charts(part, folder, theme).items()
    }


def _part(name: str, number: int, part: Mapping[str, Any], charts: Sequence[str]) -> tuple[str, Section, list[str]]:
    prefix = chart_key(name, "", number)
    own = [chart for chart in charts if chart.startswith(prefix) and "." not in chart.removeprefix(prefix)]
    return " + ".join(part["shards"]), EVALUATIONS[name].section(part), own


def chart_key(name: str, chart: str, number: int = 0) -> str:
    """`robustness.retrieval`, of a second set `robustness.2.retrieval`: also the name of its file."""
    return f"{name}.{chart}" if number == 0 else f"{name}.{number + 1}.{chart}"
