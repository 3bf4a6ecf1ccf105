"""Retrieval metrics of a feature set: ranks counted in blocks, ties against the model; numpy in, numbers out.

Legend: `N` images, `T` texts, `D` embedding, `C` captions of one image, `U` distinct rows of one side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from core.errors import DataError

RECALL_KS = (1, 5, 10)
AP_DEPTH = 10  # mAP@10
_UNIT_TOLERANCE = 1e-2  # float16 embeddings are off by 1e-3; a forgotten normalisation by far more
_BLOCK_BYTES = 32 * 2**20  # one block of similarities; two of them are alive at a time


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
        _check_rows(self.images, "image")
        _check_rows(self.texts, "text")
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
        order, starts, counts = _by_image(self.image_of_text, len(self.images))
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


def retrieval_ranks(features: FeatureSet, block_bytes: int = _BLOCK_BYTES) -> Ranks:
    """Ranks in both directions; memory is two blocks of `block_bytes` above the features, whatever `N` and `T` are."""
    wrong_before = _wrong_captions_before(features, block_bytes)
    order, starts, counts = _by_image(features.image_of_text, len(features.images))
    best = np.minimum.reduceat(wrong_before[order], starts)
    precision = _average_precision(wrong_before[order], starts, counts)
    return Ranks(best + 1, _wrong_images_before(features, block_bytes) + 1, precision)


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
        "image_to_text": ranks.average_precision,
        "text_to_image": np.where(own_rank <= AP_DEPTH, 1.0 / own_rank, 0.0),
    }
    return {
        direction: {f"recall@{k}": recall_at_k(direction_ranks, k) for k in ks}
        | {
            "median_rank": median_rank(direction_ranks),
            "mean_rank": float(np.mean(direction_ranks)),
            f"map@{AP_DEPTH}": float(np.mean(precisions[direction])),
        }
        for direction, direction_ranks in (("image_to_text", ranks.image_to_text), ("text_to_image", own_rank))
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


def _wrong_images_before(features: FeatureSet, block_bytes: int) -> np.ndarray:
    """`(T,)` for each text: wrong images at least as similar as its own."""
    gallery = _Gallery(features.images)
    before = np.empty(len(features.texts), dtype=np.int64)
    for rows, similarity in gallery.blocks(features.texts, block_bytes):
        own_column = gallery.column[features.image_of_text[rows]]
        own = similarity[np.arange(len(similarity)), own_column]
        before[rows] = gallery.count_at_least(similarity, own) - 1  # its own image is always counted
    return before


def _wrong_captions_before(features: FeatureSet, block_bytes: int) -> np.ndarray:
    """`(T,)` for each text as answer to its own image: captions of other images that are at least as similar."""
    gallery = _Gallery(features.texts)
    order, starts, counts = _by_image(features.image_of_text, len(features.images))
    before = np.empty(len(features.texts), dtype=np.int64)
    for rows, similarity in gallery.blocks(features.images, block_bytes):
        for slot in range(counts[rows].max()):
            has_slot = np.flatnonzero(counts[rows] > slot)
            text = order[starts[rows][has_slot] + slot]
            own = np.full(len(similarity), np.inf, dtype=np.float32)  # an image without this slot counts nothing
            # From the block itself: computed apart, it could differ in the last bit and no longer tie with itself.
            own[has_slot] = similarity[has_slot, gallery.column[text]]
            at_least = gallery.count_at_least(similarity, own)[has_slot]
            own_at_least = _own_captions_at_least(
                similarity[has_slot],
                own[has_slot],
                gallery.column,
                order,
                starts[rows][has_slot],
                counts[rows][has_slot],
            )
            before[text] = at_least - own_at_least
    return before


def _own_captions_at_least(
    similarity: np.ndarray,
    own: np.ndarray,
    column: np.ndarray,
    order: np.ndarray,
    starts: np.ndarray,
    counts: np.ndarray,
) -> np.ndarray:
    """`(b,)` of each image's own captions, how many are at least as similar as the one whose similarity is `own`."""
    row = np.repeat(np.arange(len(counts)), counts)
    within = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    text = order[np.repeat(starts, counts) + within]
    at_least = similarity[row, column[text]] >= own[row]
    return np.bincount(row, weights=at_least, minlength=len(counts)).astype(np.int64)


class _Gallery:
    """The side that is searched. Rows with equal bits are kept once: a matrix product may round equal columns apart."""

    def __init__(self, rows: np.ndarray) -> None:
        first_seen: dict[bytes, int] = {}
        self.column = np.empty(len(rows), dtype=np.int64)  # (R,) which distinct row each row is
        for i, row in enumerate(rows):
            self.column[i] = first_seen.setdefault(row.tobytes(), len(first_seen))
        first = np.unique(self.column, return_index=True)[1]
        self.distinct = rows if len(first) == len(rows) else rows[first]  # (U, D)
        copies = np.bincount(self.column)
        self._repeated = np.flatnonzero(copies > 1)
        self._extra_copies = copies[self._repeated] - 1

    def blocks(self, queries: np.ndarray, block_bytes: int) -> Iterator[tuple[slice, np.ndarray]]:
        """Similarities `(b, U)` of successive queries; each block is overwritten by the next."""
        num_rows = min(len(queries), max(1, block_bytes // (4 * len(self.distinct))))
        buffer = np.empty((num_rows, len(self.distinct)), dtype=np.float32)
        for start in range(0, len(queries), num_rows):
            block = queries[start : start + num_rows]
            # numpy's product is always IEEE float32; torch's follows a global switch that training may have lowered.
            np.matmul(block, self.distinct.T, out=buffer[: len(block)])
            yield slice(start, start + len(block)), buffer[: len(block)]

    def count_at_least(self, similarity: np.ndarray, own: np.ndarray) -> np.ndarray:
        """`(b,)` gallery rows, copies counted, at least as similar as `own` `(b,)`."""
        # Row by row: the comparison stays in the cache and count_nonzero is vectorised; 3 times a sum by axis.
        at_least = [np.count_nonzero(row >= row_own) for row, row_own in zip(similarity, own, strict=True)]
        extra = (similarity[:, self._repeated] >= own[:, None]) @ self._extra_copies
        return np.array(at_least, dtype=np.int64) + extra


def _average_precision(wrong_before: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """`(N,)` AP@10 from the wrong captions before each right one (grouped by image)."""
    image = np.repeat(np.arange(len(counts)), counts)
    ascending = wrong_before[np.lexsort((wrong_before, image))]
    nth = (
        np.arange(len(image)) - np.repeat(starts, counts) + 1
    )  # 1 for the image's first right answer, 2 for its second
    rank = ascending + nth
    precision = np.where(rank <= AP_DEPTH, nth / rank, 0.0)
    return np.add.reduceat(precision, starts) / np.minimum(counts, AP_DEPTH)


def _by_image(image_of_text: np.ndarray, num_images: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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


def _check_rows(rows: np.ndarray, kind: str) -> None:
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
