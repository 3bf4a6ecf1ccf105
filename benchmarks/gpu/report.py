"""report.md: a table of all results with expectation and verdict, and below it the figures that are tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.results import Result
from trainer.run.environment import hardware

REPORT = "report.md"
_SHARES = ("share", "mfu", "_line", "_busy")  # how names end whose figures are shown in per cent
_UNITS = {"gib": "GiB", "mib": "MiB", "mb": "MB", "mfu": "MFU"}  # the others are as they stand in names


def write_report(folder: Path, results: Sequence[Result], environment: Mapping[str, Any]) -> None:
    """Write the table of what is known so far."""
    packages = ", ".join(f"{name} {number}" for name, number in environment["packages"].items())
    lines = [
        "# The GPU kit",
        "",
        f"{environment['started']}, {hardware(dict(environment))}, Python {environment['python']}, {packages}; commit "
        f"{(environment['commit'] or 'unknown')[:12]}.",
        "",
        _counts(results),
        "",
        "| measurement | figures | expectation | verdict |",
        "| --- | --- | --- | --- |",
        *(_row(result) for result in results),
        "",
    ]
    for result in results:
        for name, rows in result.figures.items():
            if isinstance(rows, list) and rows:
                lines += [f"## {result.name}: {_words(name)}", "", *_table(rows), ""]
    (folder / REPORT).write_text("\n".join(lines))


def _counts(results: Sequence[Result]) -> str:
    verdicts = [result.verdict for result in results]
    said = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts))
    seconds = sum(result.seconds for result in results)
    where = f"{results[0].size} size on {results[0].device}: " if results else ""
    return (
        f"{where}{said or 'nothing yet'}, {seconds:.0f} s. Names and expectations are those of the full size on a GPU; "
        "*measured* is what was made otherwise, and is not held against them."
    )


def _row(result: Result) -> str:
    scalars = {name: value for name, value in result.figures.items() if not isinstance(value, list)}
    figures = "; ".join(f"{_words(name)} {_said(name, value)}" for name, value in scalars.items())
    reason = f": {result.reason}" if result.reason else ""
    cells = (
        f"**{result.name}**: {result.shows}", figures or "-", result.expects,
        f"**{result.verdict}**{reason}",
    )  # fmt: skip
    return f"| {' | '.join(_cell(cell) for cell in cells)} |"


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    names = list(rows[0])
    lines = [" | ".join(_words(name) for name in names), " | ".join("---" for _ in names)]
    lines += [" | ".join(_cell(_said(name, row[name])) for name in names) for row in rows]
    return [f"| {line} |" for line in lines]


def _words(name: str) -> str:
    words = name.replace("_per_s", "/s").split("_")
    return " ".join(_UNITS.get(word, word) for word in words)


def _said(name: str, value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, str):
        return value
    if name.endswith(_SHARES):
        return f"{100 * value:.1f} %"
    return f"{value:,.0f}" if value == round(value) or abs(value) >= 1000 else f"{value:.3g}"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
