"""What of a shard set's columns goes into a batch: the one place between a column on disk and a tensor on the device.

A column needs no code here: the recipe names it, the column itself says whether it has a value per sample or caption.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from core.class_captions import answer_ids
from core.seeding import uniform
from core.shard_set import ShardSet
from trainer.data.names import IMAGE_ID, NUM_CAPTIONS, TEXT, TOKENS

# One of each sample, the same in every column; every one of them, ragged; or every one, filled up with zeros to the
# number that no sample of the set exceeds, beside a column that says how many there are.
Captions = Literal["drawn", "all", "filled"]
Values = np.ndarray | tuple[np.ndarray, np.ndarray]  # (n, ...); or ragged: values of all captions, counts (n,)


@dataclass(frozen=True)
class BatchColumns:
    """Which columns batches have, and how they are read.

    Attributes:
        names: name in a batch -> column of the shard set; "text" -> the set's own choice (`ShardSet.text`).
        captions: whether columns per caption come with the one drawn for a position, or with all of them.
        most: captions that a sample may have, where they are filled up (`most_captions`).
        seed: of the drawn captions.
    """

    names: Mapping[str, str]
    captions: Captions
    seed: int = 0
    most: int = 0

    @property
    def has_text(self) -> bool:
        """Whether caption embeddings are read with each sample."""
        return TEXT in self.names

    def open(self, shard_set: ShardSet) -> None:
        """Find every column, so that what is missing ends a run before its first step.

        Raises:
            ManifestError: a set lacks a column, or its columns do not fit together.
        """
        if self.has_text:
            shard_set.embed_dim  # noqa: B018  raises
        if self._has_captions:
            shard_set.class_captions  # noqa: B018  raises
        for name in self._further.values():
            shard_set.column(name)

    def read(
        self, shard_set: ShardSet, epoch: int, samples: np.ndarray, draws: np.ndarray, texts: Sequence[np.ndarray]
    ) -> dict[str, Values]:
        """The columns of some rows of a batch.

        Args:
            samples, draws: `(n,)` as served.
            texts: caption embeddings `(C, E)` of each, where the batch has them: read with the pictures, since a sample
                whose own are damaged is replaced.

        Raises:
            DamagedError: a column's file is not what was written. It speaks of a whole shard: nothing stands in for it.
        """
        ids = answer_ids(shard_set, samples) if self._has_captions else shard_set.image_ids(samples)
        read: dict[str, Values] = {IMAGE_ID: ids.view(np.int64)}
        if self.has_text:
            read[TEXT] = self._of_captions(texts, epoch, draws)
        for name, column_name in self._further.items():
            column = shard_set.column(column_name)
            if column.head.per == "sample":
                read[name] = column.rows(samples)
            else:
                read[name] = self._of_captions([column.of_captions(int(s)) for s in samples], epoch, draws)
        if self.captions == "filled":
            read[NUM_CAPTIONS] = self._counts(shard_set, samples, texts)
        return read

    def _counts(self, shard_set: ShardSet, samples: np.ndarray, texts: Sequence[np.ndarray]) -> np.ndarray:
        if self.has_text:
            return np.array([len(own) for own in texts], dtype=np.int64)
        columns = [shard_set.column(name) for name in self._further.values()]
        column = next(column for column in columns if column.head.per == "caption")
        return np.array([len(column.of_captions(int(sample))) for sample in samples], dtype=np.int64)

    @property
    def _has_captions(self) -> bool:
        """Whether captions are compared: those of one class are right for each other's pictures."""
        return self.has_text or TOKENS in self.names

    @property
    def _further(self) -> dict[str, str]:
        return {name: column for name, column in self.names.items() if name != TEXT}

    def _of_captions(self, values: Sequence[np.ndarray], epoch: int, draws: np.ndarray) -> Values:
        counts = np.array([len(own) for own in values], dtype=np.int64)
        if self.captions == "all":
            return np.concatenate(values), counts
        if self.captions == "filled":
            filled = np.zeros((len(values), self.most, *values[0].shape[1:]), values[0].dtype)
            for row, own in zip(filled, values, strict=True):
                row[: len(own)] = own
            return filled
        chosen = drawn_captions(self.seed, epoch, draws, counts)
        return np.stack([own[caption] for own, caption in zip(values, chosen)])


def most_captions(shard_set: ShardSet, names: Mapping[str, str]) -> int:
    """The most captions that a sample of the set has, by the columns that batches carry."""
    most = [shard_set.most_embeddings] if TEXT in names else []
    columns = [shard_set.column(column) for name, column in names.items() if name != TEXT]
    return max(most + [column.most_captions for column in columns if column.head.per == "caption"])


def drawn_captions(seed: int, epoch: int, draws: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Which caption each position has, `(n,)` from 0 to its count - 1: a pure function of (seed, epoch, draw)."""
    chance = uniform(seed, epoch, draws, "caption", 1)[:, 0].astype(np.float64)
    return (chance * counts).astype(np.int64)


def joined(parts: Sequence[Values]) -> Values:
    """The rows of several parts of a batch, one after the other."""
    if isinstance(parts[0], tuple):
        values, counts = zip(*parts)
        return np.concatenate(values), np.concatenate(counts)
    return np.concatenate(parts)
