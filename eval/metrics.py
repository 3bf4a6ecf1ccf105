"""Retrieval metrics of a feature set: ranks counted in blocks, ties against the model; numpy in, numbers out.

Legend: `N` images, `T` texts, `D` embedding, `C` captions of one image, `U` distinct rows of one side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash

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
_BLOCK_BYTES = 32 * 2**20  # one block of similarities
_OWN_BLOCK = 4096  # pairs of an image and its own text that are multiplied at a time


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
    """Ranks in both directions, from one product; memory above the features: `block_bytes` and some numbers per row."""
    wrong_captions, wrong_images = _wrong_before(features, block_bytes)
    order, starts, counts = _by_image(features.image_of_text, len(features.images))
    best = np.minimum.reduceat(wrong_captions[order], starts)
    precision = _average_precision(wrong_captions[order], starts, counts)
    return Ranks(best + 1, wrong_images + 1, precision)


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


def _wrong_before(features: FeatureSet, block_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """`(T,)` each: captions of other images at least as similar to a text's image as the text itself, and other images
    at least as similar to the text as its own."""
    images, texts = _Distinct(features.images), _Distinct(features.texts)
    own, row, column = _own_similarity(features, images, texts)
    # A text that several images share has a threshold for each; all others are counted a whole row at a time.
    is_shared = texts.copies[texts.place] > 1
    shared, alone = np.flatnonzero(is_shared), np.flatnonzero(~is_shared)
    threshold = np.full(len(texts.rows), np.inf, dtype=np.float32)
    threshold[column[alone]] = own[alone]
    texts_at_least = np.empty(len(own), dtype=np.int64)
    images_at_least = np.zeros(len(texts.rows), dtype=np.int64)
    shared_images_at_least = np.zeros(len(shared), dtype=np.int64)
    for rows, similarity in _blocks(images.rows, texts.rows, block_bytes):
        here = np.flatnonzero((row >= rows.start) & (row < rows.stop))  # texts whose image is in this block
        # Computed apart, it may differ in the last bit; it must tie with itself and with equal rows.
        similarity[row[here] - rows.start, column[here]] = own[here]
        texts_at_least[here] = texts.count_at_least(similarity, row[here] - rows.start, own[here])
        for copies, similarity_row in zip(images.copies[rows], similarity, strict=True):
            images_at_least += (similarity_row >= threshold) * copies if copies > 1 else similarity_row >= threshold
            if len(shared):
                shared_images_at_least += (similarity_row[column[shared]] >= own[shared]) * copies
    wrong_images = images_at_least[column] - 1  # its own image is always counted
    wrong_images[shared] = shared_images_at_least - 1
    return texts_at_least - _own_captions_at_least(features, own), wrong_images


def _own_similarity(
    features: FeatureSet, images: _Distinct, texts: _Distinct
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`(T,)` each: a text's similarity to its own image, and the distinct image and text that it lies between."""
    row, column = images.place[features.image_of_text], texts.place
    cells, cell = np.unique(row * len(texts.rows) + column, return_inverse=True)  # equal pairs: one value, to the bit
    own = np.empty(len(cells), dtype=np.float32)
    for start in range(0, len(cells), _OWN_BLOCK):
        cell_row, cell_column = np.divmod(cells[start : start + _OWN_BLOCK], len(texts.rows))
        own[start : start + _OWN_BLOCK] = np.einsum("td,td->t", images.rows[cell_row], texts.rows[cell_column])
    return own[cell], row, column


def _own_captions_at_least(features: FeatureSet, own: np.ndarray) -> np.ndarray:
    """`(T,)` captions of a text's image, itself included, that are at least as similar to it as the text."""
    order, starts, counts = _by_image(features.image_of_text, len(features.images))
    at_least = np.zeros(len(own), dtype=np.int64)
    for slot in range(counts.max()):
        rival = np.full(len(counts), -np.inf, dtype=np.float32)
        rival[counts > slot] = own[order[starts[counts > slot] + slot]]
        at_least += rival[features.image_of_text] >= own
    return at_least


class _Distinct:
    """The rows of one side, those with equal bits once: a matrix product may round equal columns apart."""

    def __init__(self, rows: np.ndarray) -> None:
        first_seen: dict[bytes, int] = {}
        self.place = np.empty(len(rows), dtype=np.int64)  # which distinct row each row is
        for i, row in enumerate(rows):
            self.place[i] = first_seen.setdefault(xxhash.xxh3_128_digest(row), len(first_seen))
        first = np.unique(self.place, return_index=True)[1]
        self.rows = rows if len(first) == len(rows) else rows[first]  # (U, D)
        self.copies = np.bincount(self.place)  # (U,)
        self._repeated = np.flatnonzero(self.copies > 1)

    def count_at_least(self, similarity: np.ndarray, row: np.ndarray, own: np.ndarray) -> np.ndarray:
        """`(q,)` of these rows, copies counted, how many are in `similarity[row]` at least as similar as `own`."""
        # Row by row: the comparison stays in the cache and count_nonzero is vectorised; 3 times a sum by axis.
        at_least = [np.count_nonzero(similarity[r] >= o) for r, o in zip(row, own, strict=True)]
        counts = np.array(at_least, dtype=np.int64)
        for repeated in self._repeated:
            counts += (similarity[row, repeated] >= own) * (self.copies[repeated] - 1)
        return counts


def _blocks(images: np.ndarray, texts: np.ndarray, block_bytes: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Similarities of successive images to all texts; each block is overwritten by the next."""
    num_rows = min(len(images), max(1, block_bytes // (4 * len(texts))))
    buffer = np.empty((num_rows, len(texts)), dtype=np.float32)
    for start in range(0, len(images), num_rows):
        block = images[start : start + num_rows]
        # numpy's product is always IEEE float32; torch's follows a global switch that training may have lowered.
        np.matmul(block, texts.T, out=buffer[: len(block)])
        yield slice(start, start + len(block)), buffer[: len(block)]


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
