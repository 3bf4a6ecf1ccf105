"""Makes the measurements one after the other, each in a process of its own, for as long as the time lasts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.gpu.measure import SIZES, Context, Figures, Measure, Size, Skipped
from benchmarks.gpu.repeat import repeat
from benchmarks.gpu.report import write_report
from benchmarks.gpu.results import Result, Verdict, add, as_json, judge
from benchmarks.measure import ROOT

FIGURES, LOG = "figures.json", "log.txt"
LOGS, TRACES, ENVIRONMENT = "logs.zip", "traces.zip", "environment.json"
MOST_TRACE_BYTES, MOST_LOG_BYTES = 6_000_000, 200_000
_SLOWEST = 4  # times the least time that a measurement may take
_LONGEST_SMALL_S = 240


@dataclass(frozen=True)
class Job:
    """What `run` was asked for.

    Attributes:
        earlier: results that are taken over.
        deadline: on `time.monotonic`'s clock.
    """

    prepared: Path
    out: Path
    measures: Sequence[Measure]
    size: Size
    device: Literal["cuda", "cpu"]
    earlier: Sequence[Result]
    deadline: float
    environment: dict[str, Any]


def run(job: Job) -> list[Result]:
    """Make every measurement that is not known and fits into the time; returns all results, those taken over first."""
    job.out.mkdir(parents=True, exist_ok=True)
    (job.out / ENVIRONMENT).write_text(json.dumps(job.environment, indent=1) + "\n")
    results = list(job.earlier)
    for result in results:
        add(job.out, result)
    known = {result.name for result in results}
    with tempfile.TemporaryDirectory(prefix="gpu-kit-") as scratch:
        for folder in ("logs", "traces"):
            (Path(scratch) / folder).mkdir()
        for measure in job.measures:
            if measure.name in known:
                continue
            print(f"{measure.name}: {measure.shows}", flush=True)
            result = _made(job, measure, results, Path(scratch))
            results.append(result)
            add(job.out, result)
            write_report(job.out, results, job.environment)
            _pack(Path(scratch) / "logs", job.out / LOGS, MOST_LOG_BYTES)
            _pack(Path(scratch) / "traces", job.out / TRACES, None)
            print(f"  {result.verdict} in {result.seconds:.0f} s {result.reason}", flush=True)
    write_report(job.out, results, job.environment)
    return results


def work(name: str, task: Path) -> None:
    """One measurement, in this process: reads the context from `task`, leaves the figures beside it."""
    from benchmarks.gpu.measures import BY_NAME

    values = json.loads(task.read_text())
    paths = {key: Path(values[key]) for key in ("shards", "work", "traces")}
    context = Context(**paths, device=values["device"], size=SIZES[values["size"]], earlier=values["earlier"])
    try:
        found = {"figures": BY_NAME[name].function(context)}
    except Skipped as reason:
        found = {"skipped": str(reason)}
    (context.work / FIGURES).write_text(as_json(found))


def _made(job: Job, measure: Measure, results: Sequence[Result], scratch: Path) -> Result:
    """The result of one measurement: made, skipped or failed."""

    def result(verdict: Verdict, reason: str = "", seconds: float = 0.0, figures: Figures | None = None) -> Result:
        about = (measure.shows, measure.expects, job.size.name, job.device)
        return Result(measure.name, verdict, *about, round(seconds, 1), figures or {}, reason)

    if measure.needs_gpu and job.device == "cpu":
        return result("skipped", "needs a GPU")
    least_s = measure.least_s if job.size.name == "full" else 0
    left_s = job.deadline - time.monotonic()
    if left_s <= least_s:
        return result("skipped", f"takes {least_s} s at least, {max(0, left_s):.0f} s are left")
    limit_s = _SLOWEST * least_s or _LONGEST_SMALL_S
    began = time.monotonic()
    shards = _shards(job, scratch) if measure.reads_shards else job.prepared
    folder = scratch / measure.name
    folder.mkdir()
    context = {
        "shards": str(shards), "work": str(folder), "traces": str(scratch / "traces"), "device": job.device,
        "size": job.size.name, "earlier": {r.name: r.figures for r in results if r.figures},
    }  # fmt: skip
    ended = _in_own_process(measure.name, context, scratch / "logs", min(limit_s, job.deadline - time.monotonic()))
    seconds = time.monotonic() - began
    found = json.loads((folder / FIGURES).read_text()) if ended == 0 else {}
    shutil.rmtree(folder)
    if ended is None and job.deadline <= time.monotonic():
        return result("skipped", f"the time was over after {seconds:.0f} s", seconds)
    if ended is None:
        return result("failed", f"was not done after {limit_s} s; {LOGS} holds its words", seconds)
    if ended != 0:
        return result("failed", f"ended with {ended}: {_last_words(scratch / 'logs', measure.name)}", seconds)
    if "skipped" in found:
        return result("skipped", found["skipped"], seconds)
    figures = found["figures"]
    return result(judge(measure, figures, job.size.name, job.device), "", seconds, figures)


def _shards(job: Job, scratch: Path) -> Path:
    """The set that trainings read, made at the first use."""
    shards = scratch / "shards"
    if not shards.exists():
        repeat(job.prepared, scratch / "shards.partial", job.size.num_samples)
        (scratch / "shards.partial").rename(shards)
    return shards


def _in_own_process(name: str, context: dict[str, Any], logs: Path, limit_s: float) -> int | None:
    """Run the measurement with all its output in `logs`; returns the exit code, None where it had to be stopped."""
    task = Path(context["work"]) / "task.json"
    task.write_text(as_json(context))
    command = [sys.executable, "-m", "benchmarks.gpu", "measure", name, str(task)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    if context["device"] == "cpu":
        environment["OMP_NUM_THREADS"] = "1"  # several threads wait for each other where cores are shared
    with open(logs / f"{name}.txt", "w") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, process_group=0
        )
        try:
            return process.wait(timeout=max(1.0, limit_s))
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # its trainings and their workers, too
                process.wait()


def _last_words(logs: Path, name: str) -> str:
    lines = [line for line in (logs / f"{name}.txt").read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it said nothing"


def _pack(folder: Path, target: Path, most_of_each: int | None) -> None:
    """Pack the folder's files; of each at most the last bytes; what would make the archive too large is left out."""
    files = sorted(folder.iterdir())
    if not files:
        return
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files:
            archive.writestr(path.name, path.read_bytes()[-(most_of_each or 0) :])
    if target.stat().st_size > MOST_TRACE_BYTES:
        with zipfile.ZipFile(target, "w") as archive:
            archive.writestr("left_out.txt", f"packed, it was larger than {MOST_TRACE_BYTES / 1e6:.0f} MB\n")
