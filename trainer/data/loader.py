"""Loaders for training and evaluation over shard sets; (epoch, step) is the whole state of a training loader."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial

import numpy as np
import torch

from core.config import Choice
from core.shard_set import ShardSet
from trainer.data.batch import Batch, Damage, too_many_damaged
from trainer.data.columns import BatchColumns, most_captions
from trainer.data.names import TEXT
from trainer.data.stream import BatchStream, PlannedBatch
from trainer.samplers.epoch import draws_of
from trainer.samplers.order import sampled
from trainer.samplers.slices import rank_slice, step_slice, steps_per_epoch

UNIFORM = Choice("uniform")
TEXT_ALONE = {TEXT: ""}  # the columns of a batch beside the image ids: the caption embeddings


class TrainLoader:
    """This rank's batches, in the order that the sampler gives each epoch.

    Workers decode past the end of an epoch, so the next one starts without a pause.

    Args:
        global_batch_size: over all ranks.
        sampler: one of `SAMPLERS`, with its options.
        columns: name in a batch -> column of the shard set (`BatchColumns.names`).
        all_captions: batches carry every caption of a sample, filled up to the most that one has, and "num_captions".
        pictures: false reads columns alone.
        num_workers: processes that decode; 0 decodes in this process.
        prefetch: batches decoded ahead.
        max_damaged: distinct samples that may be damaged in the run; those of other ranks are counted by the ledger.

    Raises:
        ConfigError: the sampler cannot fill an epoch of this data.
        ManifestError: a column is missing.
    """

    def __init__(
        self,
        shard_set: ShardSet,
        *,
        global_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        sampler: Choice = UNIFORM,
        columns: Mapping[str, str] = TEXT_ALONE,
        all_captions: bool = False,
        pictures: bool = True,
        num_workers: int = 0,
        prefetch: int = 2,
        pin_memory: bool = False,
        max_damaged: int = 0,
    ) -> None:
        self.num_samples = len(shard_set)
        self.global_batch_size, self.rank, self.world_size = global_batch_size, rank, world_size
        self.steps_per_epoch = steps_per_epoch(self.num_samples, global_batch_size, world_size)
        self.damaged: dict[int, Damage] = {}  # met by this rank, by sample number
        self._max_damaged = max_damaged
        self._next: tuple[int, int] | None = None  # epoch and step that the stream gives next
        self._stream = BatchStream(
            shard_set,
            BatchColumns(columns, "filled", seed, most_captions(shard_set, columns))
            if all_captions
            else BatchColumns(columns, "drawn", seed),
            max_rows=global_batch_size // world_size,
            num_workers=num_workers,
            prefetch=prefetch,
            pin_memory=pin_memory and torch.cuda.is_available(),
            max_damaged=max_damaged,
            pictures=pictures,
        )
        # Epoch -> its sample numbers; the ledger and the plan ask for the same one.
        self.order: Callable[[int], np.ndarray] = lru_cache(maxsize=2)(
            partial(sampled, sampler, shard_set, global_batch_size, self.steps_per_epoch, seed)
        )
        self.order(0)  # what is wrong with the sampler's options shows here

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from `start_step` on; an iterator that was left unfinished ends with this call.

        Raises:
            DamagedError: more than `max_damaged` samples are damaged; names them.
            DataError: a worker died.
        """
        if self._next != (epoch, start_step):
            self._stream.start(self._plan(epoch, start_step))
            self._next = (epoch, start_step)
        return self._batches(epoch, start_step)

    def close(self) -> None:
        """Let the workers go."""
        self._stream.close()

    def _batches(self, epoch: int, start_step: int) -> Iterator[Batch]:
        for step in range(start_step, self.steps_per_epoch):
            assert self._next == (epoch, step), "this epoch's iterator was replaced by a later call of epoch()"
            self._next = None  # an error leaves the stream at an unknown place
            batch = self._stream.take()
            assert (batch.epoch, batch.step) == (epoch, step), "a stale batch"
            self._next = (epoch, step + 1) if step + 1 < self.steps_per_epoch else (epoch + 1, 0)
            self._count(batch.damaged)
            yield batch

    def _plan(self, epoch: int, step: int) -> Iterator[PlannedBatch]:
        while True:
            order = self.order(epoch)
            draws = draws_of(order, self.num_samples)
            for s in range(step, self.steps_per_epoch):
                share = (s, self.global_batch_size, self.rank, self.world_size)
                yield PlannedBatch(epoch, s, step_slice(order, *share), step_slice(draws, *share))
            epoch, step = epoch + 1, 0

    def _count(self, damaged: tuple[Damage, ...]) -> None:
        self.damaged.update({d.sample: d for d in damaged})
        if len(self.damaged) > self._max_damaged:
            raise too_many_damaged([d.description for d in self.damaged.values()], self._max_damaged)


class EvalLoader:
    """Every sample exactly once over the ranks, with all its captions, in order; may be iterated again.

    Args:
        samples: only these, `(n,)`; None: all.
        batch_size: of one rank; the last batch has what is left.
        columns, pictures: as for `TrainLoader`; columns per caption are ragged.
        max_damaged: samples that another one may stand in for; None: every single one counts.
    """

    def __init__(
        self,
        shard_set: ShardSet,
        *,
        batch_size: int,
        samples: np.ndarray | None = None,
        rank: int = 0,
        world_size: int = 1,
        columns: Mapping[str, str] = TEXT_ALONE,
        pictures: bool = True,
        num_workers: int = 0,
        prefetch: int = 2,
        pin_memory: bool = False,
        max_damaged: int | None = None,
    ) -> None:
        wanted = np.arange(len(shard_set)) if samples is None else samples
        own = wanted[rank_slice(len(wanted), rank, world_size)]
        pieces = [own[start : start + batch_size] for start in range(0, len(own), batch_size)]
        self._plan = [PlannedBatch(0, step, piece, piece) for step, piece in enumerate(pieces)]
        self._stream = BatchStream(
            shard_set,
            BatchColumns(columns, "all"),
            max_rows=max(1, min(batch_size, len(own))),
            num_workers=num_workers,
            prefetch=prefetch,
            pin_memory=pin_memory and torch.cuda.is_available(),
            max_damaged=max_damaged,
            pictures=pictures,
        )

    def __len__(self) -> int:
        return len(self._plan)

    def __iter__(self) -> Iterator[Batch]:
        """Raises: DamagedError: more than `max_damaged` samples cannot be used."""
        self._stream.start(self._plan)
        for _ in self._plan:
            yield self._stream.take()

    def close(self) -> None:
        """Let the workers go."""
        self._stream.close()
