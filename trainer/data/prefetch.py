"""Batches to the device: the next one is copied while the current one is in use, and waiting is measured."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import torch

from trainer.data.batch import Batch


def to_device(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches on `device`, with `wait_s`: the time this process waited for the loader (not for the device)."""
    return _ahead(batches, device) if device.type == "cuda" else _moved(batches, device)


def _moved(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    while (batch := _timed_next(batches)) is not None:
        yield batch.to(device)


def _ahead(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    stream = torch.cuda.Stream(device)
    try:
        copying = _start_copy(_timed_next(batches), device, stream)
        while copying is not None:
            batch, source, done = copying
            following = _start_copy(_timed_next(batches), device, stream)
            in_use = torch.cuda.current_stream(device)
            in_use.wait_event(done)
            for tensor in batch.device_tensors():
                tensor.record_stream(in_use)  # the allocator must not give the memory to the next copy too early
            yield batch
            done.synchronize()  # long past; only now may workers write the source again
            del source, batch
            copying = following
    finally:
        stream.synchronize()  # whoever leaves early lets go of sources, too


def _start_copy(
    batch: Batch | None, device: torch.device, stream: torch.cuda.Stream
) -> tuple[Batch, Batch, torch.cuda.Event] | None:
    """The batch as it will be on the device, its source, and when the source may be let go."""
    if batch is None:
        return None
    with torch.cuda.stream(stream):
        moved = batch.to(device)
        done = torch.cuda.Event()
        done.record(stream)
    return moved, batch, done


def _timed_next(batches: Iterator[Batch]) -> Batch | None:
    start = time.perf_counter()
    batch = next(batches, None)
    return None if batch is None else replace(batch, wait_s=time.perf_counter() - start)
