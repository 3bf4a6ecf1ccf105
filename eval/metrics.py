"""Feature sets, and the figures of ranks counted in them: recall, mean and median, mAP, intervals. Free of torch.

Legend: `N` images, `T` texts, `D` embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from core.errors import DataError
from trainer.telemetry.names import (
    AP_DEPTH,
    IMAGE_TO_TEXT,
    MEAN_AP,
    MEAN_RANK,
    MEDIAN_RANK,
    RECALL_KS,
    TEXT_TO_IMAGE,
    recall,
)

_UNIT_TOLERANCE = 1e-2  # float16 embeddings are off by 1e-3; a forgotten normalisation by far more


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """Image and text features of one set, in the order of its samples: what every evaluator is fed.

    Args:
        images: `(N, D)`, unit length; kept as float32.
        texts: `(T, D)`, unit length; kept as float32.
        image_of_text: `(T,)`, the row in `images` that each text describes; every image has at least one text.

    Raises:
        DataError: NaN or infinity, a row that is not of unit length, an image without text, shapes that do not fit.
    """

    images: np.ndarray
    texts: np.ndarray
    image_of_text: np.ndarray

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", np.ascontiguousarray(self.images, dtype=np.float32))
        object.__setattr__(self, "texts", np.ascontiguousarray(self.texts, dtype=np.float32))
        object.__setattr__(self, "image_of_text", np.asarray(self.image_of_text).astype(np.int64, casting="same_kind"))
        _check_shapes(self.images, self.texts, self.image_of_text)
        check_rows(self.images, "image")
        check_rows(self.texts, "text")
        without = np.flatnonzero(self.captions_per_image() == 0)
        if len(without):
            raise DataError(
                f"Image row {without[0]} has no text ({len(without)} of {len(self.images)} images): its rank does not"
                " exist. Leave such images out of the set."
            )

    def captions_per_image(self) -> np.ndarray:
        """`(N,)` number of texts of each image."""
        return np.bincount(self.image_of_text, minlength=len(self.images))

    def select(self, images: np.ndarray, max_captions: int | None = None) -> FeatureSet:
        """The feature set of some images, in the order given, with their texts (at most the first `max_captions`)."""
        order, starts, counts = by_image(self.image_of_text, len(self.images))
        if max_captions is not None:
            counts = np.minimum(counts, max_captions)
        texts = np.concatenate([order[starts[i] : starts[i] + counts[i]] for i in images])
        return FeatureSet(self.images[images], self.texts[texts], np.repeat(np.arange(len(images)), counts[images]))


@dataclass(frozen=True, eq=False)
class Ranks:
    """What retrieval metrics are made of; ranks start at 1, every wrong answer that ties stands before the right one.

    `image_to_text` `(N,)`: rank of the best right caption among all texts. `text_to_image` `(T,)`: rank of the own
    image among all images. `average_precision` `(N,)`: AP@10 of an image's captions (of a text it is 1/rank or 0).
    """

    image_to_text: np.ndarray
    text_to_image: np.ndarray
    average_precision: np.ndarray


def recall_at_k(ranks: np.ndarray, k: int) -> float:
    """Share, 0 to 1, of queries with at least one right answer among the first `k`."""
    return float(np.mean(ranks <= k))


def median_rank(ranks: np.ndarray) -> float:
    """Median, counted from 1 and rounded down between two ranks, as VSE++ and its successors print it."""
    return float(np.floor(np.median(ranks)))


def summarise(ranks: Ranks, ks: Sequence[int] = RECALL_KS) -> dict[str, dict[str, float]]:
    """The figures of both directions under the names used in `results.json` and wandb; recall and mAP are 0 to 1."""
    own_rank = ranks.text_to_image
    precisions = {
        IMAGE_TO_TEXT: ranks.average_precision,
        TEXT_TO_IMAGE: np.where(own_rank <= AP_DEPTH, 1.0 / own_rank, 0.0),
    }
    return {
        direction: {recall(k): recall_at_k(direction_ranks, k) for k in ks}
        | {
            MEDIAN_RANK: median_rank(direction_ranks),
            MEAN_RANK: float(np.mean(direction_ranks)),
            MEAN_AP: float(np.mean(precisions[direction])),
        }
        for direction, direction_ranks in ((IMAGE_TO_TEXT, ranks.image_to_text), (TEXT_TO_IMAGE, own_rank))
    }


@dataclass(frozen=True)
class Interval:
    """An estimate with its bootstrap interval; a difference whose interval excludes 0 is more than chance."""

    estimate: float
    low: float
    high: float


def bootstrap(
    values: np.ndarray,
    groups: np.ndarray | None = None,
    *,
    num_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile interval of the mean of `values` `(Q,)`, drawing whole groups with replacement.

    Args:
        groups: `(Q,)` integers; captions of one image rise and fall together, so `image_of_text` belongs here for text
            queries. None: every value is its own group.
    """
    if groups is None:
        groups = np.arange(len(values))
    group_of_value = np.unique(groups, return_inverse=True)[1]
    sums = np.bincount(group_of_value, weights=values)
    sizes = np.bincount(group_of_value)
    generator = np.random.default_rng(seed)
    means = np.empty(num_resamples)
    for resample in range(num_resamples):
        drawn = generator.integers(len(sums), size=len(sums))
        means[resample] = sums[drawn].sum() / sizes[drawn].sum()
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(np.mean(values)), float(low), float(high))


def paired_bootstrap(
    ranks_a: np.ndarray,
    ranks_b: np.ndarray,
    k: int,
    groups: np.ndarray | None = None,
    *,
    num_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Recall@k of run b minus that of run a on the same queries in the same order, with its interval."""
    if len(ranks_a) != len(ranks_b):
        raise DataError(
            f"One run has {len(ranks_a)} queries, the other {len(ranks_b)}: a paired comparison needs the same queries."
            " Evaluate both runs on the same shards."
        )
    gain = (ranks_b <= k).astype(np.float64) - (ranks_a <= k)
    return bootstrap(gain, groups, num_resamples=num_resamples, level=level, seed=seed)


def by_image(image_of_text: np.ndarray, num_images: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Texts ordered by image, where each image's texts start in that order, and how many they are."""
    counts = np.bincount(image_of_text, minlength=num_images)
    return np.argsort(image_of_text, kind="stable"), np.cumsum(counts) - counts, counts


def _check_shapes(images: np.ndarray, texts: np.ndarray, image_of_text: np.ndarray) -> None:
    if images.ndim != 2 or texts.ndim != 2 or not len(images) or not len(texts):
        raise DataError(f"Features are (rows, width) and not empty; got images {images.shape} and texts {texts.shape}.")
    if images.shape[1] != texts.shape[1]:
        raise DataError(
            f"Image features are {images.shape[1]} wide, text features {texts.shape[1]}: they do not share a space."
            " Use the checkpoint with shards of its own text encoder."
        )
    if image_of_text.shape != (len(texts),):
        raise DataError(f"image_of_text has shape {image_of_text.shape}; {len(texts)} texts need ({len(texts)},).")
    if image_of_text.min() < 0 or image_of_text.max() >= len(images):
        wrong = np.flatnonzero((image_of_text < 0) | (image_of_text >= len(images)))[0]
        raise DataError(
            f"Text row {wrong} names image {image_of_text[wrong]}; there are {len(images)} images, counted from 0."
        )


def check_rows(rows: np.ndarray, kind: str) -> None:
    """Raise where a row is not of unit length."""
    squared = np.einsum("rd,rd->r", rows, rows)
    broken = np.flatnonzero(~np.isfinite(squared))
    if len(broken):
        raise DataError(
            f"{kind.capitalize()} row {broken[0]} holds NaN or infinity ({len(broken)} of {len(rows)} rows):"
            " no rank can be counted. Look for the step where training diverged."
        )
    off = np.flatnonzero(np.abs(np.sqrt(squared) - 1) > _UNIT_TOLERANCE)
    if len(off):
        raise DataError(
            f"{kind.capitalize()} row {off[0]} has length {np.sqrt(squared[off[0]]):.4g} ({len(off)} of {len(rows)}"
            " rows): features must be of unit length. Divide each row by its norm."
        )
