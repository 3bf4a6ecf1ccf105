"""What a worker does: read, verify and decode its part of a batch straight into the batch's own memory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Dataset

from core.errors import ShardclipError
from core.image import ImageError, decode_into
from core.shard_index import IMAGE
from core.shard_set import DamagedSampleError, ShardSet
from trainer.data.batch import Damage, too_many_damaged
from trainer.data.columns import BatchColumns, Values


@dataclass(frozen=True)
class Task:
    """Samples for rows `row`, `row + 1`, ... of a buffer. Epoch and step travel with it: workers have no state."""

    epoch: int
    step: int
    slot: int  # of the image buffer; meaningless where no picture is read
    row: int
    num_parts: int  # of the batch
    samples: np.ndarray
    draws: np.ndarray


@dataclass(frozen=True)
class Part:
    """What comes back besides the pixels; `samples` are those served."""

    task: Task
    samples: np.ndarray
    columns: dict[str, Values]
    damaged: tuple[Damage, ...]
    read_s: float
    decode_s: float


class PartReader(Dataset[Part | ShardclipError]):
    """Does tasks. A sample that is damaged is replaced by the next good one, modulo the number of samples.

    The substitute is augmented and captioned by the failed position's draw, as if it had been declared there.
    Errors for people are returned, not raised: the trainer raises them itself, without a worker's traceback.

    Args:
        arrays: the image buffers; none where no picture is read.
    """

    def __init__(
        self, shard_set: ShardSet, arrays: Sequence[np.ndarray], columns: BatchColumns, max_damaged: int | None
    ) -> None:
        self._shard_set, self._arrays, self._columns = shard_set, arrays, columns
        self._max_damaged = max_damaged
        self._read_s = self._decode_s = 0.0

    def __getitem__(self, task: Task) -> Part | ShardclipError:
        try:
            return self._read_part(task)
        except ShardclipError as error:
            return error

    def _read_part(self, task: Task) -> Part:
        self._read_s = self._decode_s = 0.0
        served, texts, damaged = task.samples.copy(), [], []
        for row, sample in enumerate(task.samples.tolist()):
            out = self._arrays[task.slot][task.row + row] if self._arrays else None
            try:
                texts.append(self._read_sample(sample, out))
            except (DamagedSampleError, ImageError) as error:
                substitute, found = self._substitute(sample, out, error)
                served[row] = substitute
                texts.append(found)
                damaged.append(Damage(sample, self._place(sample, error), _reason(error), substitute, task.row + row))
        start = time.perf_counter()
        columns = self._columns.read(self._shard_set, task.epoch, served, task.draws, texts)
        self._read_s += time.perf_counter() - start
        return Part(task, served, columns, tuple(damaged), self._read_s, self._decode_s)

    def _read_sample(self, sample: int, out: np.ndarray | None) -> np.ndarray:
        """The pixels into `out`; returns the caption embeddings `(C, E)`, an empty array where none are asked for."""
        start = time.perf_counter()
        data = None if out is None else self._shard_set.member(sample, IMAGE)  # verifying it touches every page
        text = self._shard_set.embeddings(sample) if self._columns.has_text else _NO_TEXT
        read = time.perf_counter()
        if data is not None and out is not None:
            decode_into(data, self._shard_set.image_spec(sample), out)
        self._read_s += read - start
        self._decode_s += time.perf_counter() - read
        return text

    def _substitute(self, sample: int, out: np.ndarray | None, error: Exception) -> tuple[int, np.ndarray]:
        places = [self._place(sample, error)]
        while len(places) <= (self._max_damaged or 0):
            candidate = (sample + len(places)) % len(self._shard_set)
            try:
                return candidate, self._read_sample(candidate, out)
            except (DamagedSampleError, ImageError) as another:
                places.append(self._place(candidate, another))  # counted for good when its own turn comes
        raise too_many_damaged(places, self._max_damaged)

    def _place(self, sample: int, error: Exception) -> str:
        return error.place if isinstance(error, DamagedSampleError) else self._shard_set.describe(sample)


_NO_TEXT = np.empty((0, 0), np.float16)


def _reason(error: DamagedSampleError | ImageError) -> str:
    return str(error) if isinstance(error, ImageError) else "checksum"
