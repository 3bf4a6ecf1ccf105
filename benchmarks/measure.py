"""How every benchmark measures: contenders take turns in one run, medians, ratios; a table, and a JSON beside it."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / ".peers"  # made by `make peers`
RESULTS = ROOT / "benchmarks/results"
_ABSENT = "not installed"


@dataclass(frozen=True)
class Row:
    """One contender's figures."""

    name: str
    runs: tuple[float, ...]  # one figure a round, in the table's unit; none: skipped, the note says why
    median: float | None
    ratio: float | None  # ours / theirs, or as the table's `ratio` says
    note: str = ""


@dataclass(frozen=True)
class Comparison:
    """One table: the same work on the same input by several contenders, in one run."""

    title: str
    unit: str  # of the figures, e.g. "images/s on one core"
    ratio: str  # what the ratio column says, e.g. "shardclip / this"
    rows: tuple[Row, ...]
    input: str  # what all of them worked on
    extra: dict[str, Any] = field(default_factory=dict)


def pin(cores: int = 1) -> None:
    """Keep this process, and those it starts, on the last `cores` cores, with as many threads in its libraries.

    The last, because interrupts and other programs prefer the first. Call it before torch or numpy are imported.
    """
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-cores:])
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(cores)


def take_turns(
    contenders: Mapping[str, Callable[[], float]], rounds: int = 5, warm_up: bool = True
) -> dict[str, list[float]]:
    """Call every contender once a round; each returns its figure. What disturbs the machine then disturbs all of them.

    A first, uncounted call warms files, caches and compilers; without `warm_up` the contenders see to that themselves.
    """
    for contend in contenders.values() if warm_up else ():
        contend()
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:  # nobody always follows the same neighbour
            figures[name].append(contenders[name]())
    return figures


def compare(
    title: str,
    figures: Mapping[str, Sequence[float]],
    *,
    ours: str,
    unit: str,
    input: str,
    less_is_better: bool = False,
    notes: Mapping[str, str] | None = None,
    **extra: Any,
) -> Comparison:
    """Medians, and how many times better `ours` is than each; a contender without figures was skipped."""
    medians = {name: statistics.median(runs) for name, runs in figures.items() if runs}
    notes = notes or {}

    def ratio(name: str) -> float | None:
        if name not in medians:
            return None
        return medians[name] / medians[ours] if less_is_better else medians[ours] / medians[name]

    rows = (
        Row(name, tuple(runs), medians.get(name), ratio(name), notes.get(name, "")) for name, runs in figures.items()
    )
    meaning = f"this / {ours}" if less_is_better else f"{ours} / this"
    return Comparison(title, unit, meaning, tuple(rows), input, extra)


def in_own_process(module: str, *arguments: str, peers: bool = False, timeout_s: float = 1200) -> dict[str, Any]:
    """Run `python -m module arguments...` and read the JSON object of its last line of output.

    For what must be alone: peak memory, a peer that asks for other library versions (`peers`: .peers comes first on
    its path), a cold start.
    """
    paths = [str(PEERS), str(ROOT)] if peers else [str(ROOT)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    words = [sys.executable, "-m", module, *arguments]
    process = subprocess.run(words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, timeout=timeout_s)
    if process.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {process.returncode}")
    return json.loads(process.stdout.strip().splitlines()[-1])


def publish(name: str, comparisons: Sequence[Comparison], libraries: Sequence[str] = ()) -> None:
    """Print the tables and write `benchmarks/results/<name>.json` and `.md`, with hardware, versions and date."""
    machine = hardware()
    versions = {library: _version(library) for library in libraries}
    RESULTS.mkdir(exist_ok=True)
    content = {"date": str(date.today()), "hardware": machine, "versions": versions}
    tables = [asdict(comparison) for comparison in comparisons]
    (RESULTS / f"{name}.json").write_text(json.dumps({**content, "tables": tables}, indent=1) + "\n")
    about = f"{date.today()}, {machine['cpu']}, {machine['cores']} cores, {machine['gpu'] or 'no GPU'}"
    lines = [f"# `python -m benchmarks.{name}`", "", f"{about}. {_listed(versions)}", ""]
    for comparison in comparisons:
        Console().print(_table(comparison))
        lines += _markdown(comparison)
    (RESULTS / f"{name}.md").write_text("\n".join(lines))


def hardware() -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

    cpuinfo = Path("/proc/cpuinfo")
    models = [line for line in cpuinfo.read_text().splitlines() if "model name" in line] if cpuinfo.exists() else []
    return {
        "cpu": models[0].split(":")[1].strip() if models else platform.processor(),
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def is_installed(package: str) -> bool:
    """Whether a package is there, among ours or in .peers."""
    return _version(package) != _ABSENT


def _version(library: str) -> str:
    found = next(iter(distributions(name=library, path=[*sys.path, str(PEERS)])), None)
    return found.version if found else _ABSENT


def _listed(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items())


def _table(comparison: Comparison) -> Table:
    table = Table("", comparison.unit, comparison.ratio, "", title=comparison.title, caption=comparison.input)
    for row in comparison.rows:
        table.add_row(row.name, _number(row.median), _ratio(row.ratio), row.note)
    return table


def _markdown(comparison: Comparison) -> list[str]:
    num_runs = max(len(row.runs) for row in comparison.rows)
    header = [f"## {comparison.title}", "", f"{comparison.input}. Medians of {num_runs} runs.", ""]
    columns = [f"| | {comparison.unit} | {comparison.ratio} | |", "| --- | ---: | ---: | --- |"]
    rows = [f"| {row.name} | {_number(row.median)} | {_ratio(row.ratio)} | {row.note} |" for row in comparison.rows]
    extra = [f"{key.replace('_', ' ')}: {value}" for key, value in comparison.extra.items()]
    return [*header, *columns, *rows, "", *extra, *([""] if extra else [])]


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
