"""What the run does between two log lines: speed, where the time goes, and whether training is healthy.

Nothing here waits for the device between two windows: losses stay where they are until the window closes.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from core.distributed import all_gather, all_reduce_max, all_reduce_sum, world_size
from trainer.telemetry import names
from trainer.telemetry.health import alignment, uniformity_potential
from trainer.telemetry.stability import Instability, StabilityConfig, StabilityWatch
from trainer.trackers.tracker import Metric

T = TypeVar("T")
_COMPUTE_BOUND_BELOW = 0.05  # share of the step spent waiting for data
_MAX_ROWS = 1024  # for the figures that compare all pairs


@dataclass(frozen=True)
class Window:
    """One closed window; the same on every rank."""

    metrics: dict[str, Metric]
    instabilities: list[Instability]
    stop_reason: str | None  # a sentence when the run should end


@dataclass
class _Sums:
    """This rank's sums since the last log line; seconds."""

    samples: int = 0
    host_wait: float = 0.0
    read: float = 0.0
    decode: float = 0.0
    collate: float = 0.0
    draw: float = 0.0
    paused: float = 0.0
    losses: list[Tensor] = field(default_factory=list)
    grad_norms: list[Tensor] = field(default_factory=list)
    device_waits: list[tuple[torch.cuda.Event, torch.cuda.Event]] = field(default_factory=list)
    saves: list[_Save] = field(default_factory=list)


@dataclass(frozen=True)
class _Save:
    """The loop's part of a save."""

    host_s: float
    on_device: tuple[torch.cuda.Event, torch.cuda.Event] | None  # before it, and after its copies
    is_counted: bool  # in the window's time on the host

    @property
    def lost_s(self) -> float:
        """That the loop stood still: the device, where it works on by itself; asked when it is done."""
        return self.on_device[0].elapsed_time(self.on_device[1]) / 1000.0 if self.on_device else self.host_s

    @property
    def paused_s(self) -> float:
        """Of that, what lies in the window's time; between two windows only what the device still copies."""
        return self.lost_s if self.is_counted else max(0.0, self.lost_s - self.host_s)


class Telemetry:
    """Meters of one process; `close` reduces them over all ranks.

    Args:
        flops_per_image: forward and backward, from `flops.flops_per_image`; None leaves TFLOPS and MFU out. It may be
            given anew where more begins to train.
        peak_flops: of one device, from `flops.peak_flops`; None leaves MFU out.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        flops_per_image: float | None,
        peak_flops: float | None,
        stability: StabilityConfig,
    ) -> None:
        self._device, self._peak_flops = device, peak_flops
        self.flops_per_image = flops_per_image
        self._dtype = torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no float64
        self._stability = StabilityWatch(stability)
        self._sums = _Sums()
        self._began: float | None = None

    def watch(self, batches: Iterator[T]) -> Iterator[T]:
        """Pass batches on, timing the wait for each; wrap the outermost iterator, the one that gives device batches."""
        while True:
            before = time.perf_counter()
            if self._began is None:
                self._began = before
            idle_from = self._mark()
            batch = next(batches, None)
            if batch is None:
                return
            self._sums.host_wait += time.perf_counter() - before
            idle_to = self._mark()
            if idle_from is not None and idle_to is not None:
                self._sums.device_waits.append((idle_from, idle_to))
            yield batch

    def add(
        self,
        *,
        loss: Tensor,
        grad_norm: Tensor,
        num_samples: int,
        read_s: float,
        decode_s: float,
        collate_s: float,
        draw_s: float,
    ) -> None:
        """Note one step of this rank; `*_s` is what its loader spent on the batch, `draw_s` what this process did."""
        sums = self._sums
        sums.losses.append(loss.detach())
        sums.grad_norms.append(grad_norm.detach())
        sums.samples += num_samples
        sums.read, sums.decode, sums.collate = sums.read + read_s, sums.decode + decode_s, sums.collate + collate_s
        sums.draw += draw_s

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave validation out of the window's time."""
        self._synchronize()
        before = time.perf_counter()
        yield
        self._synchronize()
        if self._began is not None:  # between two windows there is nothing to leave out of
            self._sums.paused += time.perf_counter() - before

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Leave the loop's part of a save out of the window's time, and count it; waits for no device."""
        before, from_here = time.perf_counter(), self._mark()
        yield
        to_here = self._mark()
        on_device = (from_here, to_here) if from_here is not None and to_here is not None else None
        host_s, is_counted = time.perf_counter() - before, self._began is not None
        self._sums.saves.append(_Save(host_s, on_device, is_counted))

    def close(
        self,
        step: int,
        *,
        learning_rates: Mapping[str, float],
        figures: Mapping[str, Tensor],
        features: Mapping[str, Tensor],
    ) -> Window:
        """End the window at `step` (collective) and begin the next.

        Args:
            learning_rates: per parameter group.
            figures: scalars of this rank's last batch, as its objective shows them.
            features: `(b, D)` by name, unit length, of the last batch on this rank.
        """
        sums = self._sums
        self._synchronize()
        own_elapsed = self._elapsed()  # before the first collective, in which the fast wait for the slow
        losses, grad_norms = self._reduced_curves(sums)
        elapsed = self._elapsed()
        health = self._health(features)
        self._sums, self._began = _Sums(), None
        instabilities = self._stability.look(step - len(losses) + 1, losses, grad_norms)
        metrics: dict[str, Metric] = {
            names.LOSS: _finite_mean(losses),
            names.GRAD_NORM: _finite_mean(grad_norms),
            names.GRAD_NORM_MAX: max(grad_norms, default=math.nan),
            **self._of_objective(figures),
            **{names.lr(group): rate for group, rate in learning_rates.items()},
            **health,
            names.NONFINITE_STEPS: self._stability.num_nonfinite,
            names.LOSS_SPIKES: self._stability.num_spikes,
            **self._speed(sums, elapsed, own_elapsed, len(losses)),
        }
        return Window(metrics, instabilities, self._stability.stop_reason)

    def _reduced_curves(self, sums: _Sums) -> tuple[list[float], list[float]]:
        if not sums.losses:
            return [], []
        curves = torch.stack([torch.stack(sums.losses), torch.stack(sums.grad_norms).to(sums.losses[0].device)])
        losses, grad_norms = (all_reduce_sum(curves.to(self._dtype)) / world_size()).tolist()
        return losses, grad_norms

    def _of_objective(self, figures: Mapping[str, Tensor]) -> dict[str, Metric]:
        if not figures:
            return {}
        local = torch.stack([value.detach().to(self._dtype) for value in figures.values()])
        means = (all_reduce_sum(local) / world_size()).tolist()
        return {names.train(figure): mean for figure, mean in zip(figures, means)}

    def _health(self, features: Mapping[str, Tensor]) -> dict[str, Metric]:
        # Features are unit length and rows are shuffled: the first rows are a fair sample.
        some = {name: x.detach()[:_MAX_ROWS] for name, x in features.items()}
        potentials = [uniformity_potential(x) for x in some.values()]
        pair = list(some.values())[:2]
        aligned = [alignment(*pair)] if len(pair) == 2 else []
        means = (all_reduce_sum(torch.stack([*potentials, *aligned])) / world_size()).tolist()
        health: dict[str, Metric] = {names.ALIGNMENT: means[-1]} if aligned else {}
        return health | {names.uniformity(name): _log(mean) for name, mean in zip(some, means)}

    def _elapsed(self) -> float:
        """Seconds of the open window."""
        now = time.perf_counter()
        sums = self._sums
        return now - (self._began or now) - sums.paused - sum(save.paused_s for save in sums.saves)

    def _speed(self, sums: _Sums, elapsed: float, own_elapsed: float, num_steps: int) -> dict[str, Metric]:
        waits = wait_parts(sums.host_wait, _device_wait(sums), sums.read, sums.decode, sums.collate, sums.draw)
        local = torch.tensor([sums.samples, *waits.values()], dtype=self._dtype, device=self._device)
        samples, *total_waits = all_reduce_sum(local).tolist()
        saving = sum(save.lost_s for save in sums.saves)
        own_peaks = [elapsed, peak_memory_gib(self._device), saving]
        peaks = torch.tensor(own_peaks, dtype=self._dtype, device=self._device)
        slowest, memory, longest_saving = all_reduce_max(peaks).tolist()
        slowest = max(slowest, 1e-9)
        shares = {name: wait / (slowest * world_size()) for name, wait in zip(waits, total_waits)}
        per_device = samples / slowest / world_size()
        speed: dict[str, Metric] = {
            names.IMAGES_PER_S: per_device * world_size(),
            names.IMAGES_PER_S_PER_DEVICE: per_device,
            names.STEP_S: slowest / max(num_steps, 1),
            names.WAIT_SHARE: sum(shares.values()),
            **{names.wait_share_of(cause): share for cause, share in shares.items()},
            names.VERDICT: verdict(shares),
            names.CHECKPOINT_WAIT_S: longest_saving,
            names.PEAK_MEMORY_GIB: memory,
        }
        speed |= self._by_rank(sums.samples, own_elapsed, sum(waits.values()))
        if self.flops_per_image is not None:
            achieved = per_device * self.flops_per_image
            speed[names.TFLOPS_PER_DEVICE] = achieved / 1e12
            if self._peak_flops is not None:
                speed[names.MFU] = achieved / self._peak_flops
        return speed

    def _by_rank(self, samples: int, elapsed: float, waited: float) -> dict[str, Metric]:
        """What the ranks' means hide: one that lags, or whose disk is slow."""
        if world_size() == 1:
            return {}
        elapsed = max(elapsed, 1e-9)
        own = torch.tensor([[samples / elapsed, waited / elapsed]], dtype=self._dtype, device=self._device)
        rates, waits = all_gather(own).unbind(1)
        return {
            names.SLOWEST_IMAGES_PER_S: rates.min().item(),
            names.FASTEST_IMAGES_PER_S: rates.max().item(),
            names.LEAST_WAIT_SHARE: waits.min().item(),
            names.MOST_WAIT_SHARE: waits.max().item(),
            names.MOST_WAITING_RANK: int(waits.argmax()),
        }

    def _mark(self) -> torch.cuda.Event | None:
        if self._device.type != "cuda":
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def wait_parts(
    host_wait: float, device_wait: float | None, read: float, decode: float, collate: float, draw: float
) -> dict[str, float]:
    """Split the seconds lost to waiting into read, decode, collate, draw and copy.

    The device's idle time between two steps is what was lost (the host runs ahead of it, so the host's waiting costs
    nothing while the device still works). What the host spent neither drawing the pictures' parameters nor waiting for
    workers is the copy; the wait for workers is shared out like their own seconds. On a CPU host and device are one.
    """
    lost = host_wait if device_wait is None else device_wait
    for_host = min(lost, host_wait)
    for_workers = max(0.0, for_host - draw)
    worked = read + decode + collate
    parts = (
        {"read": read / worked, "decode": decode / worked, "collate": collate / worked} if worked else {"collate": 1.0}
    )
    shared = {name: for_workers * parts.get(name, 0.0) for name in ("read", "decode", "collate")}
    return {**shared, "draw": for_host - for_workers, "copy": lost - for_host}


def verdict(shares: Mapping[str, float]) -> str:
    """One word for what holds the run back, from the shares of the step spent waiting."""
    if sum(shares.values()) < _COMPUTE_BOUND_BELOW:
        return "compute-bound"
    causes = {
        "storage-bound": shares["read"],
        "decode-bound": shares["decode"] + shares["collate"],
        "augment-bound": shares["draw"],
        "copy-bound": shares["copy"],
    }
    return max(causes, key=lambda name: causes[name])


def peak_memory_gib(device: torch.device) -> float:
    """Most memory that this process had on its GPU, or in RAM where there is none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts in bytes, Linux in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def _device_wait(sums: _Sums) -> float | None:
    if not sums.device_waits:
        return None
    return sum(begin.elapsed_time(end) for begin, end in sums.device_waits) / 1000.0


def _finite_mean(values: list[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf
