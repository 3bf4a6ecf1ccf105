"""The way to the device changes nothing and measures waiting."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from shard_sets import make_shard_set

from core.shard_set import ShardSet
from trainer.data.batch import Batch
from trainer.data.loader import EvalLoader, TrainLoader
from trainer.data.prefetch import to_device


@pytest.fixture
def shard_set(tmp_path: Path) -> ShardSet:
    return ShardSet.open(make_shard_set(tmp_path, 40))


def test_on_the_cpu_batches_pass_as_they_are(shard_set: ShardSet) -> None:
    loader = TrainLoader(shard_set, global_batch_size=8)
    plain = [(b.samples.tolist(), b.images.clone()) for b in loader.epoch(0)]
    passed = list(to_device(loader.epoch(0), torch.device("cpu")))
    assert [b.samples.tolist() for b in passed] == [samples for samples, _ in plain]
    assert all(torch.equal(b.images, images) for b, (_, images) in zip(passed, plain))


def test_waiting_for_a_slow_loader_is_measured(shard_set: ShardSet) -> None:
    def slow(batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            time.sleep(0.05)
            yield batch

    loader = TrainLoader(shard_set, global_batch_size=8)
    waits = []
    for batch in to_device(slow(loader.epoch(0)), torch.device("cpu")):
        time.sleep(0.1)  # the step: not waiting
        waits.append(batch.wait_s)
    assert len(waits) == 5 and all(0.05 <= wait < 0.1 for wait in waits)


@pytest.mark.gpu
@pytest.mark.parametrize("pin_memory", [False, True])
def test_on_a_gpu_batches_arrive_whole_in_channels_last_memory(shard_set: ShardSet, pin_memory: bool) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    device = torch.device("cuda")
    plain = [b.images.clone() for e in range(6) for b in TrainLoader(shard_set, global_batch_size=8).epoch(e)]
    loader = TrainLoader(shard_set, global_batch_size=8, num_workers=2, pin_memory=pin_memory)
    arrived = []
    for epoch in range(6):
        for batch in to_device(loader.epoch(epoch), device):
            assert batch.images.device.type == "cuda" and batch.samples.device.type == "cpu"
            assert batch.images.is_contiguous(memory_format=torch.channels_last)
            torch.cuda._sleep(2_000_000)  # a step that is slower than the loader
            arrived.append(batch.images.clone())
    assert all(torch.equal(a.cpu(), p) for a, p in zip(arrived, plain, strict=True))
    evaluated = list(to_device(iter(EvalLoader(shard_set, batch_size=16, pin_memory=pin_memory)), device))
    assert sum(len(b.images) for b in evaluated) == 40
    loader.close()
