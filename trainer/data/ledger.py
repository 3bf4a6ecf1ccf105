"""Proof of coverage: what the ranks were given in an epoch, against what was declared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch

from core.distributed import all_reduce_sum, gather_objects
from core.errors import DataError
from core.spoken import counted
from trainer.data.batch import Batch, too_many_damaged

_NAMED = 5  # samples named in an error


@dataclass(frozen=True)
class LedgerReport:
    """One epoch over all ranks.

    Attributes:
        declared: visits that the sampler declared: a sample may have any number of them.
        seen: declared visits that came; damaged samples count where a substitute came in their place.
        repeated: visits beyond those declared.
        missed: declared visits that never came.
        dropped: samples without a declared visit, as those left over by the last partial batch.
        substituted: places in which a damaged sample's substitute stood.
        order_digest: hash of (position, sample) pairs, the same for any number of ranks.
    """

    declared: int
    seen: int
    repeated: int
    missed: int
    dropped: int
    substituted: int
    order_digest: int

    @property
    def spoken_substitutes(self) -> str:
        """`2 damaged samples were replaced`."""
        return f"{counted(self.substituted, 'damaged sample was', 'damaged samples were')} replaced"


class LedgerState(TypedDict):
    """What a checkpoint keeps beside (epoch, step); the same on all ranks."""

    substituted: int  # in this epoch
    damaged: dict[int, str]  # in this run: sample -> description


class CoverageLedger:
    """Counts what this rank's training loop was given.

    Args:
        num_samples: in all shard sets; the order may leave some out and visit others often.
        device: where the process group reduces: the GPU under NCCL.
        max_damaged: distinct damaged samples over all ranks and epochs.
    """

    def __init__(
        self,
        num_samples: int,
        global_batch_size: int,
        rank: int,
        world_size: int,
        max_damaged: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self._num_samples = num_samples
        self._global_batch_size, self._rank, self._world_size = global_batch_size, rank, world_size
        self._max_damaged, self._device = max_damaged, device
        self._damaged: dict[int, str] = {}

    def start(self, epoch: int, order: np.ndarray, step: int = 0, state: LedgerState | None = None) -> None:
        """Begin an epoch, or go on at `step`: what came before it is a pure function of the order.

        Args:
            order: the epoch's sample numbers, whole global batches (`TrainLoader.order`).
            state: from the checkpoint that is resumed.
        """
        self._epoch, self._order = epoch, order
        self._counts = np.zeros(self._num_samples, dtype=np.int32)
        steps = len(order) // self._global_batch_size
        self._declared_digest = self._order_digest(order, steps)
        self._seen_digest = self._order_digest(order, step)
        np.add.at(self._counts, self._own(order, step).ravel(), 1)
        self._substituted = 0
        if state is not None:
            self._damaged = {int(sample): text for sample, text in state["damaged"].items()}
            self._substituted = state["substituted"] if self._rank == 0 else 0

    def add(self, batch: Batch) -> None:
        """Count a batch that training has used."""
        assert batch.epoch == self._epoch, f"batch of epoch {batch.epoch} in the ledger of epoch {self._epoch}"
        samples = batch.samples.numpy().copy()
        for damage in batch.damaged:
            samples[damage.row] = damage.sample  # the place belongs to the declared sample
            self._damaged[damage.sample] = damage.description
        self._substituted += len(batch.damaged)
        np.add.at(self._counts, samples, 1)
        start = batch.step * self._global_batch_size + self._rank * (self._global_batch_size // self._world_size)
        self._seen_digest += _digest(np.arange(start, start + len(samples)), samples)

    def state(self) -> LedgerState:
        """What to save with a checkpoint; collective."""
        # Not summed on the device: with one process nothing here may wait for it.
        return {"substituted": sum(gather_objects(self._substituted)), "damaged": self._all_damaged()}

    def finish(self) -> LedgerReport:
        """The epoch's account; collective, the same on all ranks.

        Raises:
            DataError: samples were missed, repeated, or came in another order.
            DamagedError: more than `max_damaged` samples are damaged.
        """
        damaged = self._all_damaged()
        if len(damaged) > self._max_damaged:
            raise too_many_damaged(list(damaged.values()), self._max_damaged)
        counts = all_reduce_sum(torch.from_numpy(self._counts).to(self._device)).cpu().numpy()
        seen_digest, declared_digest, substituted = self._sum(
            [_signed(self._seen_digest), _signed(self._declared_digest), self._substituted]
        )
        declared = np.bincount(self._order, minlength=self._num_samples)
        surplus = counts.astype(np.int64) - declared
        num_missed = int(-surplus[surplus < 0].sum())
        report = LedgerReport(
            declared=len(self._order),
            seen=len(self._order) - num_missed,
            repeated=int(surplus[surplus > 0].sum()),
            missed=num_missed,
            dropped=int((declared == 0).sum()),
            substituted=int(substituted),
            order_digest=int(seen_digest) % 2**64,
        )
        if report.missed or report.repeated or seen_digest != declared_digest:
            raise DataError(self._complaint(report, np.flatnonzero(surplus < 0), np.flatnonzero(surplus > 0)))
        return report

    def _complaint(self, report: LedgerReport, missed: np.ndarray, again: np.ndarray) -> str:
        if report.missed or report.repeated:
            what = f"{report.missed} missed{_named(missed)}, {report.repeated} repeated{_named(again)}"
        else:
            what = "all of them came, but not in the declared order"
        return (
            f"Epoch {self._epoch}: {report.declared} samples were declared: {what}. "
            "The run does not train on what it says: resume it from the last checkpoint with the same data."
        )

    def _all_damaged(self) -> dict[int, str]:
        union: dict[int, str] = {}
        for damaged in gather_objects(self._damaged):
            union.update(damaged)
        return dict(sorted(union.items()))

    def _sum(self, values: list[int]) -> list[int]:
        summed: list[int] = all_reduce_sum(torch.tensor(values, dtype=torch.int64, device=self._device)).tolist()
        return summed

    def _own(self, order: np.ndarray, num_steps: int) -> np.ndarray:
        per_rank = self._global_batch_size // self._world_size
        steps = order[: num_steps * self._global_batch_size].reshape(num_steps, self._global_batch_size)
        return steps[:, self._rank * per_rank : (self._rank + 1) * per_rank]

    def _order_digest(self, order: np.ndarray, num_steps: int) -> int:
        return _digest(self._own(np.arange(len(order)), num_steps).ravel(), self._own(order, num_steps).ravel())


def _digest(positions: np.ndarray, samples: np.ndarray) -> int:
    # A sum modulo 2^64, so that ranks and resumed parts can be added in any order.
    pairs = positions.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + _mix(samples.astype(np.uint64))
    return int(_mix(pairs).sum(dtype=np.uint64))


def _signed(digest: int) -> int:
    return (digest + 2**63) % 2**64 - 2**63  # as int64, which process groups can add


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _named(samples: np.ndarray) -> str:
    return (
        f" ({', '.join(map(str, samples[:_NAMED]))}{', ...' if len(samples) > _NAMED else ''})" if len(samples) else ""
    )
