"""What was found: one line of results.jsonl for each measurement, written when it is known."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from benchmarks.gpu.measure import Figures, Measure
from core.errors import DataError
from core.journal import append_json, read_json_lines

RESULTS = "results.jsonl"
Verdict = Literal["met", "missed", "measured", "skipped", "failed"]
KNOWN = ("met", "missed", "measured")  # not to be measured again


@dataclass(frozen=True)
class Result:
    """One measurement's figures and verdict.

    `measured`: made at a small size or on a CPU, of which its expectation does not speak.
    """

    name: str
    verdict: Verdict
    shows: str
    expects: str
    size: str
    device: str
    seconds: float = 0.0
    figures: Figures = field(default_factory=dict)
    reason: str = ""  # of what was skipped or failed


def judge(measure: Measure, figures: Figures, size: str, device: str) -> Verdict:
    """Whether the figures are as expected."""
    if not measure.holds_everywhere and (size, device) != ("full", "cuda"):
        return "measured"
    return "met" if measure.is_met(figures) else "missed"


def add(folder: Path, result: Result) -> None:
    """Append the result's line."""
    append_json(folder / RESULTS, asdict(result))


def read(folder: Path) -> list[Result]:
    """The results of a folder that `run` wrote.

    Raises:
        DataError: there are none.
    """
    path = folder / RESULTS
    if not path.exists():
        raise DataError(f"{path}: is not there. Name the folder that an earlier `run` wrote: --resume EARLIER.")
    return [Result(**line) for line in read_json_lines(path)]


def known(results: list[Result], size: str, device: str) -> list[Result]:
    """Those that need not be measured again: of this size, on such a device, with figures."""
    return [r for r in results if r.verdict in KNOWN and (r.size, r.device) == (size, device)]


def as_json(value: object) -> str:
    """Figures as one line of JSON; NaN is refused, since other readers do not know it."""
    return json.dumps(value, allow_nan=False)
