"""The gallery of a k-NN evaluation: features of labelled pictures of the training set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from core.column_values import united_classes
from core.shard_set import ShardSet
from eval.evaluations.evaluation import Gallery, Shelf
from eval.evaluations.knn import gallery_samples
from eval.features import Pictures
from eval.labels import Labels


@dataclass(frozen=True, eq=False)
class GallerySource:
    """A labelled training set, and the samples of it that are compared with; their features change with the weights."""

    shard_set: ShardSet
    labels: Labels
    samples: np.ndarray  # (G,)

    @classmethod
    def of(cls, shard_set: ShardSet, labels: Labels, queries: ShardSet) -> GallerySource | None:
        """All labelled samples, or 10,000 of them, the same ones every time; None where no one is left.

        Pictures that are measured themselves take no part: each would find itself, and its own class.
        """
        measured = queries.image_ids(np.arange(len(queries)))
        is_measured = np.isin(shard_set.image_ids(np.arange(len(shard_set))), measured)
        samples = gallery_samples(np.where(is_measured, -1, labels.numbers))
        return cls(shard_set, labels, samples) if len(samples) else None

    def gallery(self, pictures: Pictures, classes: tuple[str, ...], shelf: Shelf | None = None) -> Gallery:
        """The pictures with their classes, numbered as in `classes`; `shelf` shows them."""
        labels = self.labels.among(classes)[pictures.samples]
        has_class = labels >= 0  # a damaged sample's substitute may have none
        return Gallery(pictures.images[has_class], labels[has_class], pictures.samples[has_class], shelf)

    def describe(self) -> dict[str, Any]:
        """For `results.json`."""
        return {
            "shards": list(self.shard_set.urls),
            "fingerprint": self.shard_set.fingerprint,
            "num_images": len(self.samples),
            "of": int((self.labels.numbers >= 0).sum()),  # with a class
        }


def joint_classes(labels: Labels, source: GallerySource | None) -> tuple[str, ...]:
    """The classes of a set and its gallery as one list: one name, one class."""
    return united_classes([labels.classes, source.labels.classes]) if source else labels.classes
