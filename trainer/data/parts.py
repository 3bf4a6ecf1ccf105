"""What a worker does: read, verify and decode its part of a batch straight into the batch's own memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Dataset

from core.errors import DamagedError, ShardclipError
from core.image import ImageError, decode_into
from core.seeding import uniform
from core.shard_index import IMAGE
from core.shard_set import DamagedSampleError, ShardSet
from trainer.data.batch import Damage, too_many_damaged

# (epoch, samples (n,), embeddings of each sample (C, E)) -> text of the part
ChooseCaptions = Callable[[int, np.ndarray, Sequence[np.ndarray]], np.ndarray]


@dataclass(frozen=True)
class Task:
    """Samples for rows `row`, `row + 1`, ... of a buffer. Epoch and step travel with it: workers have no state."""

    epoch: int
    step: int
    slot: int
    row: int
    num_parts: int  # of the batch
    samples: np.ndarray


@dataclass(frozen=True)
class Part:
    """What comes back besides the pixels; `samples` are those served."""

    task: Task
    samples: np.ndarray
    image_ids: np.ndarray
    text: np.ndarray
    num_captions: np.ndarray
    damaged: tuple[Damage, ...]
    read_s: float
    decode_s: float


class PartReader(Dataset[Part | ShardclipError]):
    """Does tasks. A sample that is damaged is replaced by the next good one, modulo the number of samples.

    Errors for people are returned, not raised: the trainer raises them itself, without a worker's traceback.
    """

    def __init__(
        self, shard_set: ShardSet, arrays: Sequence[np.ndarray], choose_captions: ChooseCaptions, max_damaged: int
    ) -> None:
        self._shard_set = shard_set
        self._spec = shard_set.image
        self._arrays = arrays
        self._choose_captions = choose_captions
        self._max_damaged = max_damaged
        self._read_s = self._decode_s = 0.0

    def __getitem__(self, task: Task) -> Part | ShardclipError:
        try:
            return self._read_part(task)
        except ShardclipError as error:
            return error

    def _read_part(self, task: Task) -> Part:
        self._read_s = self._decode_s = 0.0
        images = self._arrays[task.slot][task.row :]
        served, embeddings, damaged = task.samples.copy(), [], []
        for row, sample in enumerate(task.samples.tolist()):
            try:
                embeddings.append(self._read_sample(sample, images[row]))
            except (DamagedError, ImageError) as error:
                substitute, found = self._substitute(sample, images[row], error)
                served[row] = substitute
                embeddings.append(found)
                damaged.append(Damage(sample, self._place(sample, error), _reason(error), substitute, task.row + row))
        return Part(
            task,
            served,
            self._shard_set.image_ids(served),
            self._choose_captions(task.epoch, served, embeddings),
            np.array([len(e) for e in embeddings], dtype=np.int64),
            tuple(damaged),
            self._read_s,
            self._decode_s,
        )

    def _read_sample(self, sample: int, out: np.ndarray) -> np.ndarray:
        start = time.perf_counter()
        data = self._shard_set.member(sample, IMAGE)  # verifying it touches every page: this is the reading
        embeddings = self._shard_set.embeddings(sample)
        read = time.perf_counter()
        decode_into(data, self._spec, out)
        self._read_s += read - start
        self._decode_s += time.perf_counter() - read
        return embeddings

    def _substitute(self, sample: int, out: np.ndarray, error: Exception) -> tuple[int, np.ndarray]:
        places = [self._place(sample, error)]
        while len(places) <= self._max_damaged:
            candidate = (sample + len(places)) % len(self._shard_set)
            try:
                return candidate, self._read_sample(candidate, out)
            except (DamagedError, ImageError) as another:
                places.append(self._place(candidate, another))  # counted for good when its own turn comes
        raise too_many_damaged(places, self._max_damaged)

    def _place(self, sample: int, error: Exception) -> str:
        return error.place if isinstance(error, DamagedSampleError) else self._shard_set.describe(sample)


def draw_captions(seed: int, epoch: int, samples: np.ndarray, embeddings: Sequence[np.ndarray]) -> np.ndarray:
    """One caption of each sample, `(n, E)`: a pure function of (seed, epoch, sample)."""
    draws = uniform(seed, epoch, samples, "caption", 1)[:, 0].tolist()
    return np.stack([captions[int(draw * len(captions))] for captions, draw in zip(embeddings, draws)])


def all_captions(epoch: int, samples: np.ndarray, embeddings: Sequence[np.ndarray]) -> np.ndarray:
    """Every caption of every sample, `(sum C, E)`."""
    return np.concatenate(embeddings)


def _reason(error: DamagedError | ImageError) -> str:
    return str(error) if isinstance(error, ImageError) else "checksum"
