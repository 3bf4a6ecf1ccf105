"""Which class each sample of a shard set has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from core.columns import LABELS, NO_NUMBER, column_names, load_head
from core.errors import DataError
from core.shard_set import ShardSet
from trainer.data.names import LABEL


@dataclass(frozen=True, eq=False)
class Labels:
    """`numbers` `(samples,)` int64: the place of each sample's class in `classes`, -1 where it has none."""

    numbers: np.ndarray
    classes: tuple[str, ...]

    def among(self, classes: Sequence[str]) -> np.ndarray:
        """The same numbers in another list of classes, which holds all of these."""
        place = [classes.index(name) for name in self.classes]
        return np.array([*place, NO_NUMBER], dtype=np.int64)[self.numbers]


def label_column(columns: Mapping[str, str], urls: Sequence[str]) -> str:
    """The column of class names that a recipe's `data.columns` calls label; "" where there is none."""
    name = columns.get(LABEL, "")
    return name if name and load_head(urls[0], name).kind == LABELS else ""


def labels_of(shard_set: ShardSet, column: str = "") -> Labels | None:
    """The classes of a set's samples; None where it has no labels.

    Args:
        column: holds them; "": the column `labels`, or what the samples' own json says.

    Raises:
        ManifestError: there is no such column.
        DataError: a sample's own label is none of the set's classes.
    """
    if column or all(LABELS in column_names(url) for url in shard_set.urls):
        values = shard_set.column(column or LABELS)
        return Labels(values.all_rows().astype(np.int64), values.classes)
    classes = shard_set.classes
    if not classes:
        return None
    names = [shard_set.info(sample).get("label") for sample in range(len(shard_set))]
    if unknown := sorted({str(name) for name in names if name is not None} - set(classes)):
        raise DataError(f"{shard_set.urls[0]}: label '{unknown[0]}' is none of the set's classes. Build the set again.")
    place = {name: number for number, name in enumerate(classes)}
    return Labels(np.array([NO_NUMBER if n is None else place[n] for n in names], dtype=np.int64), classes)
