"""The ledger balances when every declared sample came once, in order; anything else is an error."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import gloo
import pytest
import torch
from shard_sets import damage, make_shard_set

from core.errors import DamagedError, DataError
from core.shard_set import ShardSet
from trainer.data import ledger as module
from trainer.data.batch import Batch
from trainer.data.ledger import CoverageLedger, LedgerReport
from trainer.data.loader import TrainLoader

N, G = 30, 8


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_shard_set(tmp_path_factory.mktemp("set"), N, num_captions=1)


def loader_and_ledger(url: str, rank: int = 0, world_size: int = 1, max_damaged: int = 0) -> tuple[Any, Any]:
    loader = TrainLoader(
        ShardSet.open(url), global_batch_size=G, rank=rank, world_size=world_size, max_damaged=max_damaged
    )
    return loader, CoverageLedger(N, G, rank, world_size, max_damaged)


def account(url: str, epoch: int, change: Any = lambda batch: [batch]) -> LedgerReport:
    """One epoch of one process, its batches passed through `change`."""
    loader, ledger = loader_and_ledger(url)
    ledger.start(epoch, loader.order(epoch))
    for batch in loader.epoch(epoch):
        for changed in change(batch):
            ledger.add(changed)
    return ledger.finish()


def test_a_right_epoch_balances(url: str) -> None:
    report = account(url, 0)
    assert replace(report, order_digest=0) == LedgerReport(24, 24, 0, 0, 6, 0, 0)
    assert report.order_digest not in (0, account(url, 1).order_digest)


def test_a_missed_sample_is_found_and_named(url: str) -> None:
    lost: list[int] = []

    def lose_one(batch: Batch) -> list[Batch]:
        if batch.step != 1:
            return [batch]
        lost.append(int(batch.samples[-1]))
        return [replace(batch, samples=batch.samples[:-1])]

    with pytest.raises(DataError, match=r"24 samples were declared: 1 missed \(\d+\), 0 repeated") as caught:
        account(url, 0, lose_one)
    assert f"({lost[0]})" in str(caught.value)


def test_a_repeated_sample_is_found(url: str) -> None:
    def repeat_one(batch: Batch) -> list[Batch]:
        samples = batch.samples.clone()
        samples[1] = samples[0]
        return [replace(batch, samples=samples)] if batch.step == 2 else [batch]

    with pytest.raises(DataError, match=r"1 missed \(\d+\), 1 repeated \(\d+\)"):
        account(url, 0, repeat_one)


def test_a_step_that_is_trained_twice_is_found(url: str) -> None:
    with pytest.raises(DataError, match="0 missed, 8 repeated"):
        account(url, 0, lambda batch: [batch, batch] if batch.step == 0 else [batch])


def test_a_sample_that_was_to_be_dropped_is_found(url: str) -> None:
    loader, _ = loader_and_ledger(url)
    dropped = next(iter(set(range(N)) - set(loader.order(0).tolist())))

    def plant(batch: Batch) -> list[Batch]:
        samples = batch.samples.clone()
        samples[0] = dropped
        return [replace(batch, samples=samples)] if batch.step == 0 else [batch]

    with pytest.raises(DataError, match=rf"1 missed \(\d+\), 1 repeated \({dropped}\)"):
        account(url, 0, plant)


def test_two_samples_in_exchanged_places_are_found(url: str) -> None:
    with pytest.raises(DataError, match="not in the declared order"):
        account(url, 0, lambda batch: [replace(batch, samples=batch.samples.flip(0))])


def test_a_resumed_epoch_gives_the_account_of_an_unbroken_one(tmp_path: Path) -> None:
    url = make_shard_set(tmp_path, N, num_captions=1)
    damage(url, 3)
    damage(url, 19)
    loader, unbroken = loader_and_ledger(url, max_damaged=2)
    unbroken.start(4, loader.order(4))
    saved = None
    for batch in loader.epoch(4):
        unbroken.add(batch)
        saved = unbroken.state() if batch.step == 1 else saved
    fresh, resumed = loader_and_ledger(url, max_damaged=2)
    resumed.start(4, fresh.order(4), 2, saved)
    for batch in fresh.epoch(4, 2):
        resumed.add(batch)
    assert resumed.finish() == unbroken.finish()
    assert resumed.state() == unbroken.state()


def test_a_resume_at_the_wrong_step_is_found(url: str) -> None:
    loader, ledger = loader_and_ledger(url)
    ledger.start(0, loader.order(0), 1)
    for batch in loader.epoch(0, 2):
        ledger.add(batch)
    with pytest.raises(DataError, match="8 missed"):
        ledger.finish()


def test_ranks_give_the_account_of_one_process(tmp_path: Path) -> None:
    url = make_shard_set(tmp_path, N, num_captions=1)
    for sample in (3, 11, 19):
        damage(url, sample)
    alone = epoch_of_a_rank(url, 3)
    two = gloo.run(2, epoch_of_a_rank, url, 3)
    assert two[0] == two[1] == alone
    assert alone[0].substituted >= 2


def epoch_of_a_rank(url: str, max_damaged: int) -> tuple[LedgerReport, Any]:
    from core.distributed import rank, world_size

    loader, ledger = loader_and_ledger(url, rank(), world_size(), max_damaged)
    ledger.start(0, loader.order(0))
    for batch in loader.epoch(0):
        ledger.add(batch)
    return ledger.finish(), ledger.state()


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("resumed_at", [None, 2])
def test_any_number_of_ranks_gives_the_account_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world_size: int, resumed_at: int | None
) -> None:
    """Ranks are threads here, which takes no time; real processes are above."""
    url = make_shard_set(tmp_path, N, num_captions=1)
    for sample in (3, 11, 19):
        damage(url, sample)
    alone = epoch_of_a_rank(url, 3)
    order = TrainLoader(ShardSet.open(url), global_batch_size=G).order(0).tolist()
    assert alone[0].substituted == alone[1]["substituted"] == sum(order.count(sample) for sample in (3, 11, 19)) > 1

    def account(rank: int) -> tuple[LedgerReport, Any]:
        loader, ledger = loader_and_ledger(url, rank, world_size, 3)
        ledger.start(0, loader.order(0))
        for batch in loader.epoch(0):
            if batch.step == resumed_at:
                state = ledger.state()
                _, ledger = loader_and_ledger(url, rank, world_size, 3)
                ledger.start(0, loader.order(0), batch.step, state)
            ledger.add(batch)
        return ledger.finish(), ledger.state()

    assert in_threads(world_size, monkeypatch, account) == [alone] * world_size
    found = alone[1]["damaged"]
    assert sorted(found) == [sample for sample in (3, 11, 19) if sample in order]
    assert all(f"sample {sample:09d}" in description for sample, description in found.items())


def in_threads(world_size: int, monkeypatch: pytest.MonkeyPatch, account: Callable[[int], Any]) -> list[Any]:
    """What each rank's `account(rank)` returns, its collectives exchanged between threads."""
    barrier, own, given = threading.Barrier(world_size, timeout=20), threading.local(), [None] * world_size

    def exchanged(value: Any) -> list[Any]:
        given[own.rank] = value
        barrier.wait()
        found = list(given)
        barrier.wait()
        return found

    def act(rank: int) -> Any:
        own.rank = rank
        try:
            return account(rank)
        except BaseException:
            barrier.abort()
            raise

    monkeypatch.setattr(module, "gather_objects", exchanged)
    monkeypatch.setattr(module, "all_reduce_sum", lambda x: torch.stack(exchanged(x)).sum(0))
    with ThreadPoolExecutor(world_size) as ranks:
        return list(ranks.map(act, range(world_size)))


def test_the_digest_is_the_stated_sum(url: str) -> None:
    """A slow oracle in Python's whole numbers: reports of two runs are compared by it."""

    def mix(x: int) -> int:
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    order = loader_and_ledger(url)[0].order(3).tolist()
    pairs = [(place * 0x9E3779B97F4A7C15 + mix(sample)) % 2**64 for place, sample in enumerate(order)]
    assert account(url, 3).order_digest == sum(map(mix, pairs)) % 2**64


@pytest.mark.parametrize(
    ("lost", "named"), [(1, r"\(\d+\)"), (5, r"\(\d+(, \d+){4}\)"), (6, r"\(\d+(, \d+){4}, \.\.\.\)")]
)
def test_the_first_five_missed_samples_are_named(url: str, lost: int, named: str) -> None:
    def lose(batch: Batch) -> list[Batch]:
        return [replace(batch, samples=batch.samples[:-lost]) if batch.step == 1 else batch]

    with pytest.raises(DataError, match=f"{lost} missed {named}, 0 repeated\\. The run"):
        account(url, 0, lose)


def test_a_batch_of_another_epoch_is_refused(url: str) -> None:
    with pytest.raises(AssertionError, match="batch of epoch 7 in the ledger of epoch 0"):
        account(url, 0, lambda batch: [replace(batch, epoch=7)])


def test_damage_is_counted_over_the_ranks(tmp_path: Path) -> None:
    url = make_shard_set(tmp_path, N, num_captions=1)
    order = TrainLoader(ShardSet.open(url), global_batch_size=G).order(0)
    for position in (0, 4):  # one for each of two ranks: neither alone has more than max_damaged
        damage(url, int(order[position]))
    with pytest.raises(RuntimeError, match="2 damaged samples, max_damaged is 1"):
        gloo.run(2, epoch_of_a_rank, url, 1)


def test_damage_before_a_resume_still_counts(url: str) -> None:
    loader, ledger = loader_and_ledger(url, max_damaged=1)
    state = {"substituted": 0, "damaged": {1: "train-00000.tar: sample 1", 2: "train-00000.tar: sample 2"}}
    ledger.start(0, loader.order(0), 0, state)
    for batch in loader.epoch(0):
        ledger.add(batch)
    with pytest.raises(DamagedError, match="sample 1, train"):
        ledger.finish()


def test_the_digest_depends_on_the_place_of_every_sample() -> None:
    from trainer.data.ledger import _digest

    places, samples = torch.arange(100).numpy(), torch.randperm(100).numpy()
    exchanged = samples.copy()
    exchanged[[0, 1]] = exchanged[[1, 0]]
    assert _digest(places, samples) != _digest(places, exchanged)
