"""Global step t trains on positions [t * G, (t + 1) * G) of order(seed, epoch), however many ranks and workers read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import gloo
import numpy as np
import pytest
import torch
from epochs import epoch_of
from shard_sets import make_shard_set
from torch import Tensor
from training_runs import NUM_SAMPLES, SMALL_TOWER, recipe, train_worker

from core.config import Choice
from core.shard_set import ShardSet
from trainer.data.batch import Batch
from trainer.data.loader import TrainLoader
from trainer.samplers.uniform import uniform

N, G, SEED = 47, 8, 5
FEW = ((1, 0), (2, 1), (4, 2))  # ranks and workers of each
PARTS: dict[str, Callable[[Batch], Tensor]] = {
    "samples": lambda batch: batch.samples,
    "text": lambda batch: batch.column("text"),
    "images": lambda batch: batch.images,  # type: ignore[dict-item, return-value]
}
MANY = tuple(product((1, 2, 4), (0, 1, 2, 3)))


@pytest.fixture(scope="module")
def shard_set(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    folder = tmp_path_factory.mktemp("set")
    return ShardSet.open(make_shard_set(folder, N, num_captions=[1 + row % 4 for row in range(N)]))


@pytest.mark.parametrize("reading", [FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=["few", "many"])
@pytest.mark.parametrize("window_shards", [0, 2])
def test_any_ranks_and_workers_read_the_declared_positions(
    shard_set: ShardSet, reading: tuple[tuple[int, int], ...], window_shards: int
) -> None:
    steps, first = N // G, None
    for world_size, num_workers in reading:
        batches = list(global_batches(shard_set, world_size, num_workers, window_shards))
        assert len(batches) == 2 * steps
        for epoch in range(2):
            order = uniform(epoch_of(G, shard_sizes=shard_set.shard_sizes, seed=SEED, number=epoch), window_shards)
            given = np.concatenate([batch["samples"].numpy() for batch in batches[epoch * steps : (epoch + 1) * steps]])
            assert given.tolist() == order[: steps * G].tolist()
            assert len(set(given.tolist())) == steps * G  # each sample once, only the last partial batch is left out
        # Not the samples alone: their pixels and captions are the same bytes.
        contents = [{name: tensor.numpy().tobytes() for name, tensor in batch.items()} for batch in batches]
        first = first or contents
        assert contents == first, (world_size, num_workers)


def global_batches(
    shard_set: ShardSet, world_size: int, num_workers: int, window_shards: int
) -> Iterator[dict[str, Tensor]]:
    """Two epochs of all ranks, put together in rank order."""
    loaders = [
        TrainLoader(
            shard_set,
            global_batch_size=G,
            rank=rank,
            world_size=world_size,
            seed=SEED,
            num_workers=num_workers,
            sampler=Choice("uniform", {"window_shards": window_shards}),
        )
        for rank in range(world_size)
    ]
    for epoch in range(2):
        for ranks in zip(*(loader.epoch(epoch) for loader in loaders), strict=True):
            yield {name: torch.cat([part(b) for b in ranks]) for name, part in PARTS.items()}
    for loader in loaders:
        loader.close()


def give_a_batch_twice(batches: Iterator[Batch]) -> Iterator[Batch]:
    for batch in batches:
        yield batch
        if batch.step == 2:
            yield batch


def leave_a_batch_out(batches: Iterator[Batch]) -> Iterator[Batch]:
    yield from (batch for batch in batches if batch.step != 3)


def give_the_first_sample_twice(batches: Iterator[Batch]) -> Iterator[Batch]:
    for batch in batches:
        samples = batch.samples.clone()
        samples[-1] = samples[0]
        yield replace(batch, samples=samples)


def exchange_two_batches(batches: Iterator[Batch]) -> Iterator[Batch]:
    held = list(batches)
    held[1], held[2] = (replace(held[b], step=a) for a, b in ((1, 2), (2, 1)))
    yield from held


def wrong_order(change: Callable[[Iterator[Batch]], Iterator[Batch]]) -> None:
    """Plant: the loader of every rank gives what `change` makes of its batches."""
    real = TrainLoader.epoch
    TrainLoader.epoch = lambda self, *place: change(real(self, *place))  # type: ignore[method-assign, assignment]


def train_on_the_wrong_order(values: dict, change: Callable[[Iterator[Batch]], Iterator[Batch]]) -> int | str:
    return train_worker(values, plant=lambda: wrong_order(change))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (give_a_batch_twice, "8 repeated"),
        (give_the_first_sample_twice, "repeated"),
        (exchange_two_batches, "not in the declared order"),
    ],
)
@pytest.mark.parametrize("world_size", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_that_trains_on_anything_else_ends_with_an_error(
    tmp_path: Path, world_size: int, change: Callable[[Iterator[Batch]], Iterator[Batch]], complaint: str
) -> None:
    values = recipe(tmp_path, epochs=2, model=SMALL_TOWER)
    for said in gloo.run(world_size, train_on_the_wrong_order, values, change):
        assert isinstance(said, str) and said.startswith(f"Epoch 0: {NUM_SAMPLES // 8 * 8} samples were declared: ")
        assert complaint in said


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_run_whose_batches_end_early_does_not_pass_for_a_finished_one(tmp_path: Path, world_size: int) -> None:
    values = recipe(tmp_path, epochs=1, model=SMALL_TOWER)
    for said in gloo.run(world_size, train_on_the_wrong_order, values, leave_a_batch_out):
        assert isinstance(said, str) and "the batches ended after step 5 of 6" in said
    assert '"state": "failed"' in (tmp_path / "run" / "run.json").read_text()
