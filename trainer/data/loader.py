"""Loaders for training and evaluation over shard sets; (epoch, step) is the whole state of a training loader."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch

from core.shard_set import ShardSet
from trainer.data.batch import Batch, Damage, EvalBatch, too_many_damaged
from trainer.data.order import epoch_order, rank_slice, step_slice, steps_per_epoch
from trainer.data.parts import all_captions, draw_captions
from trainer.data.stream import BatchStream, PlannedBatch


class TrainLoader:
    """This rank's batches: every sample once per epoch over all ranks, the last partial batch dropped.

    Workers decode past the end of an epoch, so the next one starts without a pause.

    Args:
        global_batch_size: over all ranks.
        num_workers: processes that decode; 0 decodes in this process.
        prefetch: batches decoded ahead.
        window_shards: 0, or shuffle within groups of that many shards (`epoch_order`).
        max_damaged: distinct samples that may be damaged in the run; those of other ranks are counted by the ledger.
    """

    def __init__(
        self,
        shard_set: ShardSet,
        *,
        global_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        num_workers: int = 0,
        prefetch: int = 2,
        window_shards: int = 0,
        pin_memory: bool = False,
        max_damaged: int = 0,
    ) -> None:
        self.num_samples = len(shard_set)
        self.global_batch_size, self.rank, self.world_size = global_batch_size, rank, world_size
        self.steps_per_epoch = steps_per_epoch(self.num_samples, global_batch_size, world_size)
        self.damaged: dict[int, Damage] = {}  # met by this rank, by sample number
        self._seed, self._window_shards, self._max_damaged = seed, window_shards, max_damaged
        self._shard_sizes = shard_set.shard_sizes
        self._next: tuple[int, int] | None = None  # epoch and step that the stream gives next
        shard_set.embed_dim  # noqa: B018  a set without embeddings ends here, not in a worker
        self._stream = BatchStream(
            shard_set,
            partial(draw_captions, seed),
            max_rows=global_batch_size // world_size,
            num_workers=num_workers,
            prefetch=prefetch,
            pin_memory=pin_memory and torch.cuda.is_available(),
            max_damaged=max_damaged,
        )

    def order(self, epoch: int) -> np.ndarray:
        """The epoch's permutation of sample numbers."""
        return epoch_order(self.num_samples, self._seed, epoch, self._shard_sizes, self._window_shards)

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
            decoded = self._stream.take()
            assert (decoded.epoch, decoded.step) == (epoch, step), "a stale batch"
            self._next = (epoch, step + 1) if step + 1 < self.steps_per_epoch else (epoch + 1, 0)
            self._count(decoded.damaged)
            yield Batch(
                decoded.images,
                decoded.text,
                decoded.samples,
                decoded.image_ids,
                epoch,
                step,
                decoded.damaged,
                decoded.read_s,
                decoded.decode_s,
                decoded.collate_s,
            )

    def _plan(self, epoch: int, step: int) -> Iterator[PlannedBatch]:
        while True:
            order = self.order(epoch)
            for s in range(step, self.steps_per_epoch):
                yield PlannedBatch(epoch, s, step_slice(order, s, self.global_batch_size, self.rank, self.world_size))
            epoch, step = epoch + 1, 0

    def _count(self, damaged: tuple[Damage, ...]) -> None:
        self.damaged.update({d.sample: d for d in damaged})
        if len(self.damaged) > self._max_damaged:
            raise too_many_damaged([d.description for d in self.damaged.values()], self._max_damaged)


class EvalLoader:
    """Every sample exactly once over the ranks, with all its captions, in order; may be iterated again.

    Args:
        batch_size: of one rank; the last batch has what is left.
    """

    def __init__(
        self,
        shard_set: ShardSet,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        prefetch: int = 2,
        pin_memory: bool = False,
    ) -> None:
        samples = rank_slice(len(shard_set), rank, world_size)
        starts = range(0, len(samples), batch_size)
        self._plan = [PlannedBatch(0, step, samples[s : s + batch_size]) for step, s in enumerate(starts)]
        self._stream = BatchStream(
            shard_set,
            all_captions,
            max_rows=max(1, min(batch_size, len(samples))),
            num_workers=num_workers,
            prefetch=prefetch,
            pin_memory=pin_memory and torch.cuda.is_available(),
            max_damaged=0,
        )

    def __len__(self) -> int:
        return len(self._plan)

    def __iter__(self) -> Iterator[EvalBatch]:
        """Raises: DamagedError: a sample cannot be used; an evaluation has no substitutes."""
        self._stream.start(self._plan)
        for _ in self._plan:
            decoded = self._stream.take()
            yield EvalBatch(decoded.images, decoded.text, decoded.num_captions, decoded.samples, decoded.image_ids)

    def close(self) -> None:
        """Let the workers go."""
        self._stream.close()
