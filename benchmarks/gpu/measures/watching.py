"""A training watched from within: where its steps wait for the device, and what the device does meanwhile."""

from __future__ import annotations

import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.gpu.measure import Context, Figures
from benchmarks.gpu.training import recipe
from benchmarks.measure import ROOT

_STEPS, _LOG_EVERY = 24, 8  # the first window warms up; in the others every step is watched
_TRACED_STEPS = 3
_KERNELS_SHOWN = 12
_PRODUCT = ("core", "trainer", "eval", "launch")


def synchronisations(context: Context) -> Figures:
    """Waits for the device between log lines, per step and by place, as CUDA's sync debug mode reports them.

    It sees reads of values (`.item()`), pageable copies and whatever else goes through torch's own waits; it does not
    see `Event.synchronize` and `Stream.synchronize` called by name.
    """
    import torch

    run = _opened(context, batch_size=context.size.batch_sizes[0], steps=_STEPS, log_every=_LOG_EVERY)
    with _noted_waits() as places:
        _between_log_lines(
            run,
            begin=lambda: torch.cuda.set_sync_debug_mode("warn"),
            end=lambda: torch.cuda.set_sync_debug_mode("default"),
        )
        _train(run)
    watched = _STEPS - _LOG_EVERY
    return {
        "steps": watched,
        "per_step": sum(places.values()) / watched,
        "places": [{"place": place, "per_step": count / watched} for place, count in places.most_common()],
    }


def profile(context: Context) -> Figures:
    """A trace of a few steps, for chrome://tracing or Perfetto, and the kernels that take most time in it."""
    import torch
    from torch.profiler import ProfilerActivity

    run = _opened(
        context, batch_size=context.size.batch_sizes[1], steps=3 * _TRACED_STEPS, log_every=_TRACED_STEPS
    )  # the first window warms up, the second is traced
    on_gpu = context.device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    profiler = torch.profiler.profile(activities=activities)
    times: list[float] = []

    def note_time() -> None:
        if on_gpu:
            torch.cuda.synchronize()
        times.append(time.perf_counter())

    def begin() -> None:
        if not times:
            profiler.start()
            note_time()

    def end() -> None:
        if len(times) == 1:
            note_time()
            profiler.stop()

    _between_log_lines(run, begin, end)
    _train(run)
    profiler.export_chrome_trace(str(context.traces / "training_steps.json"))
    spent = _seconds_spent(profiler, on_gpu)
    busy, wall = sum(spent.values()), times[1] - times[0]
    most = sorted(spent.items(), key=lambda item: -item[1])[:_KERNELS_SHOWN]
    return {
        "steps": _TRACED_STEPS,
        "step_s": wall / _TRACED_STEPS,
        "busy_share": busy / wall,
        "kernels": [{"kernel": name[:80], "share_of_busy": seconds / busy} for name, seconds in most],
    }


def _seconds_spent(profiler: Any, on_gpu: bool) -> dict[str, float]:
    """Of each kernel on the GPU; on a CPU of each operator, without those that it calls."""
    from torch.autograd import DeviceType

    events = [event for event in profiler.key_averages() if not event.is_user_annotation]
    if on_gpu:
        return {e.key: e.self_device_time_total / 1e6 for e in events if e.device_type == DeviceType.CUDA}
    return {e.key: e.self_cpu_time_total / 1e6 for e in events}


def _opened(context: Context, batch_size: int, steps: int, log_every: int) -> Any:
    from core.config import from_mapping
    from eval.validation import make_validation
    from trainer.config import TrainConfig
    from trainer.run.opening import open_run

    values = recipe(context, context.work / "run", batch_size, steps, log_every=log_every)
    return open_run(from_mapping(TrainConfig, values, "the kit's recipe"), make_validation)


def _train(run: Any) -> None:
    from trainer.train import train

    train(run)


def _between_log_lines(run: Any, begin: Callable[[], Any], end: Callable[[], Any]) -> None:
    """Call `begin` after each log line but the last, and `end` before each but the first."""
    log, is_begun = run.log, False

    def logged(step: int, *arguments: Any) -> None:
        nonlocal is_begun
        if is_begun:
            end()
        log(step, *arguments)
        is_begun = step < run.total_steps
        if is_begun:
            begin()

    run.log = logged


@contextmanager
def _noted_waits() -> Iterator[Counter[str]]:
    """Count torch's warnings of waits by the place in this tree that they come from."""
    places: Counter[str] = Counter()
    show = warnings.showwarning

    def note(message: Any, category: Any, filename: str, lineno: int, *rest: Any) -> None:
        if "synchronizing CUDA operation" in str(message):
            places[_our_place(filename, lineno)] += 1
        else:
            show(message, category, filename, lineno, *rest)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        yield places


def _our_place(filename: str, lineno: int) -> str:
    """The innermost line of the product on the stack, and the line below it that waited."""
    inner = f"{Path(filename).name}:{lineno}"
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in _PRODUCT:
            outer = f"{path.relative_to(ROOT)}:{frame.lineno}"
            return outer if path == Path(filename) else f"{outer} through {inner}"
    return inner
