"""What an evaluation is, and what it is given: who adds a metric reads this file and nothing else. Free of torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from eval.metrics import FeatureSet, Ranks

Need = Literal["text", "labels", "prompts"]


@dataclass(frozen=True, eq=False)
class Gallery:
    """Pictures among which others look for their neighbours.

    Attributes:
        images: `(G, D)`, unit length.
        labels: `(G,)` classes, numbered as the subject's.
        samples: `(G,)` numbers in their shard set, to show them by.
    """

    images: np.ndarray
    labels: np.ndarray
    samples: np.ndarray


@dataclass(frozen=True, eq=False)
class Prompts:
    """What the names of classes say, in the space of the pictures.

    Attributes:
        features: `(K, D)`, unit length, of each class.
        labels: `(N,)` which of them each of the subject's pictures has, -1 for none.
    """

    features: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, eq=False)
class Subject:
    """What is known of a set that is measured.

    Attributes:
        images: `(N, D)` float32 features of its pictures, unit length, each picture once.
        labels: `(N,)` class of each, -1 where it has none; None where classes are not known.
        pairs: pictures and captions; None where captions play no part.
        ranks: of the right answers among all pictures and captions of the set; given wherever `pairs` are.
        gallery: pictures of the training set; None: the set is its own gallery, each picture left out of its own.
        prompts: None where no text can be compared, or classes are not known.
    """

    images: np.ndarray
    labels: np.ndarray | None = None
    pairs: FeatureSet | None = None
    ranks: Ranks | None = None
    gallery: Gallery | None = None
    prompts: Prompts | None = None

    def __post_init__(self) -> None:
        assert (self.pairs is None) == (self.ranks is None), "pairs and their ranks are given together"

    @property
    def knows(self) -> tuple[Need, ...]:
        """What evaluations may ask for."""
        known: dict[Need, object] = {"text": self.pairs, "labels": self.labels, "prompts": self.prompts}
        return tuple(need for need, value in known.items() if value is not None)


@dataclass(frozen=True)
class Evaluation:
    """A measurement that validation follows and `shardclip eval` repeats.

    Attributes:
        measure: gives every one of `figures`, and nothing else.
        figures: their names, without the section `val/`.
        needs: without these it is passed over.
    """

    measure: Callable[[Subject], Mapping[str, float]]
    figures: tuple[str, ...]
    needs: tuple[Need, ...] = ()
