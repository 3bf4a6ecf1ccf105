"""What a few steps spend their time on, operator by operator: a trace to look at, and the ten dearest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from core.errors import ConfigError

if TYPE_CHECKING:
    from torch.profiler import profile

T = TypeVar("T")
TRACE, TABLE = "trace.json.gz", "table.txt"
_NUM_ROWS = 10


@dataclass(frozen=True)
class ProfileConfig:
    from_step: int = 0  # the first step that is profiled; 0: none
    steps: int = 5  # steps that are profiled

    def __post_init__(self) -> None:
        if self.from_step < 0 or self.steps < 1:
            raise ConfigError(
                f"profile is from_step={self.from_step}, steps={self.steps}: give a step from 1 (0: no profile), "
                "and at least 1 step."
            )


def profiled(batches: Iterator[T], first_step: int, config: ProfileConfig, folder: Path) -> Iterator[T]:
    """Pass batches on; the steps that the recipe names, their loading included, are recorded into files in `folder`.

    `trace.json.gz` opens in chrome://tracing or ui.perfetto.dev, `table.txt` in any editor. Steps that take a log
    line, a validation or a checkpoint show them too. A profile that the run's end cuts short is written all the same.
    """
    last = config.from_step + config.steps - 1
    recorder: profile | None = None
    step, begun = first_step, 0
    try:
        while True:
            if config.from_step <= step <= last and config.from_step and recorder is None:
                recorder, begun = _start(), step
            batch = next(batches, None)
            if batch is None:
                return
            yield batch
            if recorder is not None and step == last:
                _write(recorder, folder)
                recorder = None
            step += 1
    finally:
        if recorder is not None and step > begun:
            _write(recorder, folder)
        elif recorder is not None:
            recorder.stop()  # the run ended before the first of the steps


def _start() -> profile:
    from torch import cuda
    from torch.profiler import ProfilerActivity, profile

    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda.is_available() else [])]
    recorder = profile(activities=kinds, record_shapes=True)
    recorder.start()
    return recorder


def _write(recorder: profile, folder: Path) -> None:
    recorder.stop()
    folder.mkdir(parents=True, exist_ok=True)
    recorder.export_chrome_trace(str(folder / TRACE))
    averages = recorder.key_averages()
    by = "self_device_time_total" if any(row.self_device_time_total for row in averages) else "self_cpu_time_total"
    (folder / TABLE).write_text(averages.table(sort_by=by, row_limit=_NUM_ROWS) + "\n")
