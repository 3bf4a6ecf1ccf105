"""Planned batches in, decoded batches out, in order: PyTorch's worker pool over shared image buffers.

Workers are forked: they start in milliseconds (spawned ones import torch first: seconds before the first batch), share
the buffers and the opened index without copying, and never touch CUDA. A batch is cut into parts of some hundred rows
that several workers decode at the same time, so memory grows with `prefetch`, not with workers times batch size.
"""

from __future__ import annotations

import os
import resource
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from core.errors import DataError, ShardclipError
from core.shard_set import ShardSet
from trainer.data.batch import Batch, Ragged
from trainer.data.buffers import ImageBuffers
from trainer.data.columns import BatchColumns, Values, joined
from trainer.data.workers import Part, PartReader, Task

T = TypeVar("T")
_NO_SLOT = -1
_LOOK_S = 2.0  # how often a worker looks whether its trainer is still there
_MAX_PART_ROWS = 128  # 30 ms of decoding: handing a part over costs half a millisecond


@dataclass(frozen=True)
class PlannedBatch:
    """Which samples a batch has, and what their random choices are keyed by; `(B,)` each."""

    epoch: int
    step: int
    samples: np.ndarray
    draws: np.ndarray


class BatchStream:
    """Decodes the batches of a plan ahead of their use. The same bytes for any number of workers, 0 included.

    Args:
        max_rows: of a batch.
        pictures: false reads columns alone; batches then have no images.
    """

    def __init__(
        self,
        shard_set: ShardSet,
        columns: BatchColumns,
        *,
        max_rows: int,
        num_workers: int,
        prefetch: int,
        pin_memory: bool,
        max_damaged: int | None,
        pictures: bool = True,
    ) -> None:
        columns.open(shard_set)
        # More workers than cores only share them; the figures of waiting say whether there are enough.
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        in_flight = max_in_flight(max_rows, num_workers, prefetch)
        self._buffers = ImageBuffers(in_flight, max_rows, shard_set.image.size, pin_memory) if pictures else None
        self._tasks = _Tasks(self._buffers)
        self._parts: Iterator[Part | ShardclipError] | None = None
        self._loader: DataLoader[Part | ShardclipError] | None = DataLoader(
            PartReader(shard_set, self._buffers.arrays if self._buffers else (), columns, max_damaged),
            batch_size=None,
            sampler=self._tasks,
            collate_fn=_as_it_is,
            num_workers=num_workers,
            prefetch_factor=_tasks_per_worker(max_rows, num_workers, prefetch) if num_workers else None,
            persistent_workers=num_workers > 0,
            multiprocessing_context="fork" if num_workers else None,
            worker_init_fn=_prepare_worker,
            generator=torch.Generator(),  # or the loader would draw from the global one, and resume would shift it
        )

    def start(self, plan: Iterable[PlannedBatch]) -> None:
        """Begin with a plan; whatever was under way is dropped."""
        assert self._loader is not None, "closed"
        self._tasks.plan = plan
        self._parts = _explained(lambda: iter(self._loader))  # type: ignore[arg-type]

    def take(self) -> Batch:
        """The next batch of the plan.

        Raises:
            ShardclipError: a worker met an error that ends the run, or died.
        """
        first = self._take_part()
        parts = [first, *(self._take_part() for _ in range(first.task.num_parts - 1))]
        began = time.perf_counter()
        samples = np.concatenate([p.samples for p in parts])
        batch = Batch(
            images=self._buffers.lend(first.task.slot, len(samples)) if self._buffers else None,
            columns={name: _tensors(joined([p.columns[name] for p in parts])) for name in first.columns},
            samples=torch.from_numpy(samples),
            draws=torch.from_numpy(np.concatenate([p.task.draws for p in parts])),
            epoch=first.task.epoch,
            step=first.task.step,
            damaged=tuple(d for p in parts for d in p.damaged),
            read_s=sum(p.read_s for p in parts),
            decode_s=sum(p.decode_s for p in parts),
        )
        return replace(batch, collate_s=time.perf_counter() - began)

    def close(self) -> None:
        """Let the workers go."""
        self._parts = self._loader = None

    def _take_part(self) -> Part:
        # No local name for the iterator: the traceback of an error would keep it, and its workers, alive after close().
        part = _explained(lambda: next(self._parts))  # type: ignore[arg-type]
        if isinstance(part, ShardclipError):
            raise part
        return part


class _Tasks:
    """Cuts the planned batches into tasks, as the worker pool asks for them."""

    def __init__(self, buffers: ImageBuffers | None) -> None:
        self._buffers = buffers
        self.plan: Iterable[PlannedBatch] = ()

    def __iter__(self) -> Iterator[Task]:
        if self._buffers:
            self._buffers.reclaim()  # first asked after the workers have put down what an earlier plan gave them
        for batch in self.plan:
            slot, row = self._buffers.take() if self._buffers else _NO_SLOT, 0
            num_parts = _num_parts(len(batch.samples))
            pieces = zip(np.array_split(batch.samples, num_parts), np.array_split(batch.draws, num_parts), strict=True)
            for samples, draws in pieces:
                yield Task(batch.epoch, batch.step, slot, row, num_parts, samples, draws)
                row += len(samples)


def max_in_flight(rows: int, num_workers: int, prefetch: int) -> int:
    """Batches that workers may be filling at a time."""
    return 2 + -(-num_workers * _tasks_per_worker(rows, num_workers, prefetch) // _num_parts(rows))


def _tasks_per_worker(rows: int, num_workers: int, prefetch: int) -> int:
    return max(2, -(-prefetch * _num_parts(rows) // max(1, num_workers)))


def _num_parts(rows: int) -> int:
    return -(-rows // _MAX_PART_ROWS)


def _tensors(values: Values) -> Tensor | Ragged:
    if isinstance(values, tuple):
        return Ragged(torch.from_numpy(values[0]), torch.from_numpy(values[1]))
    return torch.from_numpy(values)


def _as_it_is(part: T) -> T:
    return part


def _prepare_worker(worker: int) -> None:
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))  # a mapped shard each
    # Schedulers and Ctrl-C signal every process of a job; the trainer decides what to do, and must not lose its workers
    # before it has saved. Only the trainer itself ends them, or its death: hence the thread that looks for both.
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_when_the_trainer_says, daemon=True).start()


def _end_when_the_trainer_says() -> None:
    trainer = os.getppid()
    while True:
        told = signal.sigtimedwait({signal.SIGTERM}, _LOOK_S)
        if os.getppid() != trainer:
            os._exit(1)  # killed: what this worker still wants to hand over, nobody takes, and it would wait for ever
        if told is not None and told.si_pid == trainer:
            os._exit(0)


def _explained(act: Callable[[], T]) -> T:
    try:
        return act()
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        cause = str(error).split(". ")[0].removeprefix("DataLoader worker ").rstrip(". ")
    raise DataError(
        f"A data loading worker died: {cause}. If killed, memory ran out: lower data.num_workers or data.prefetch; "
        "a bus error means that a shard was cut short or its disk failed: run `shardclip verify`."
    )
