"""Feature sets, and the figures of ranks counted in them: recall, mean and median, mAP, intervals. Free of torch.

Legend: `N` images, `T` texts, `D` embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from core.class_captions import CLASS_NAMES
from core.errors import DataError
from trainer.telemetry.names import (
    IMAGE_TO_TEXT,
    MEAN_AP,
    MEAN_RANK,
    MEDIAN_RANK,
    RECALL_KS,
    TEXT_TO_IMAGE,
    recall,
)

_DRAWN_AT_ONCE = 2**18  # groups, by `resampled_sums`: what fits a cache
_MOST_GROUPS = 2**14  # that are drawn one by one; of more, batches: an interval is then off by 1 % of its width
_UNIT_TOLERANCE = 1e-2  # float16 embeddings are off by 1e-3; a forgotten normalisation by far more


@dataclass(frozen=True, eq=False)
class RightAnswers:
    """Which texts are right for which images: a text is, where what it says holds of the image.

    Attributes:
        kind: the end of the protocol's name, as "every sample of a class is right"; "" where only own captions are.
        says: `(T,)` int64 what each text says, by number.
        images, holds: `(H,)` int64 each: image rows, and what holds of them; no pair twice.
    """

    kind: str
    says: np.ndarray
    images: np.ndarray
    holds: np.ndarray

    def __post_init__(self) -> None:
        for name in ("says", "images", "holds"):  # as they can be saved
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), dtype=np.int64))

    def of_images(self, images: np.ndarray, texts: np.ndarray) -> RightAnswers:
        """The same of some images, numbered anew, and some texts."""
        row = np.full(max(self.images.max(), images.max()) + 1, -1)
        row[images] = np.arange(len(images))
        kept = row[self.images] >= 0
        return RightAnswers(self.kind, self.says[texts], row[self.images[kept]], self.holds[kept])

    def are_right(self, images: np.ndarray | int, texts: np.ndarray | int) -> np.ndarray:
        """Whether each text is right for the image beside it (or the one image for all)."""
        base = int(max(self.says.max(), self.holds.max())) + 1
        wanted = np.asarray(images) * base + self.says[texts]
        return np.isin(wanted, self.images * base + self.holds)


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """Image and text features of one set, in the order of its samples: what every evaluator is fed.

    Args:
        images: `(N, D)`, unit length; kept as float32.
        texts: `(T, D)`, unit length; kept as float32.
        image_of_text: `(T,)`, the row in `images` that each text describes; every image has at least one text.
        more_right: where texts are right for further images than their own; None: they are not.

    Raises:
        DataError: NaN or infinity, a row that is not of unit length, an image without text, shapes that do not fit.
    """

    images: np.ndarray
    texts: np.ndarray
    image_of_text: np.ndarray
    more_right: RightAnswers | None = None

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

        if self.more_right is not None:
            own = self.more_right.are_right(self.image_of_text, np.arange(len(self.texts)))
            assert len(self.more_right.says) == len(self.texts) and own.all(), "a text is not right for its own image"

    @property
    def right(self) -> RightAnswers:
        """Which texts are right for which images."""
        rows = np.arange(len(self.images))
        return self.more_right or RightAnswers("", self.image_of_text, rows, rows)

    @property
    def text_groups(self) -> np.ndarray:
        """`(T,)` which texts rise and fall together, for `bootstrap`: those of an image.

        Where captions were made from class names those of a class, which are one query over and over: a caption's group
        is then the first image that it is right for.
        """
        if not self.right.kind.startswith(CLASS_NAMES):
            return self.image_of_text
        first = np.full(int(max(self.right.holds.max(), self.right.says.max())) + 1, len(self.images))
        np.minimum.at(first, self.right.holds, self.right.images)
        return first[self.right.says]

    def captions_per_image(self) -> np.ndarray:
        """`(N,)` number of texts of each image."""
        return np.bincount(self.image_of_text, minlength=len(self.images))

    def select(self, images: np.ndarray, max_captions: int | None = None) -> FeatureSet:
        """The feature set of some images, in the order given, with their texts (at most the first `max_captions`)."""
        order, starts, counts = by_image(self.image_of_text, len(self.images))
        if max_captions is not None:
            counts = np.minimum(counts, max_captions)
        texts = np.concatenate([order[starts[i] : starts[i] + counts[i]] for i in images])
        more_right = self.more_right.of_images(images, texts) if self.more_right else None
        image_of_text = np.repeat(np.arange(len(images)), counts[images])
        return FeatureSet(self.images[images], self.texts[texts], image_of_text, more_right)


@dataclass(frozen=True, eq=False)
class Ranks:
    """What retrieval metrics are made of; ranks start at 1, every wrong answer that ties stands before the right one.

    `image_to_text` `(N,)`: rank of the best right caption among all texts. `text_to_image` `(T,)`: rank of the best
    right image among all images. `average_precision` `(N,)`: AP@10 of an image's captions; `text_average_precision`
    `(T,)`: of a text's images (1/rank or 0 where only its own is right).
    """

    image_to_text: np.ndarray
    text_to_image: np.ndarray
    average_precision: np.ndarray
    text_average_precision: np.ndarray


def recall_at_k(ranks: np.ndarray, k: int) -> float:
    """Share, 0 to 1, of queries with at least one right answer among the first `k`."""
    return float(np.mean(ranks <= k))


def median_rank(ranks: np.ndarray) -> float:
    """Median, counted from 1 and rounded down between two ranks, as VSE++ and its successors print it."""
    return float(np.floor(np.median(ranks)))


def summarise(ranks: Ranks, ks: Sequence[int] = RECALL_KS) -> dict[str, dict[str, float]]:
    """The figures of both directions under the names used in `results.json` and wandb; recall and mAP are 0 to 1."""
    precisions = {IMAGE_TO_TEXT: ranks.average_precision, TEXT_TO_IMAGE: ranks.text_average_precision}
    return {
        direction: {recall(k): recall_at_k(direction_ranks, k) for k in ks}
        | {
            MEDIAN_RANK: median_rank(direction_ranks),
            MEAN_RANK: float(np.mean(direction_ranks)),
            MEAN_AP: float(np.mean(precisions[direction])),
        }
        for direction, direction_ranks in (
            (IMAGE_TO_TEXT, ranks.image_to_text),
            (TEXT_TO_IMAGE, ranks.text_to_image),
        )
    }


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval; a difference whose interval excludes 0 is more than chance."""

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
    """Interval of the mean of `values` `(Q,)`, drawing whole groups with replacement (see `percentile_interval`).

    Args:
        groups: `(Q,)` integers; captions of one image rise and fall together, so `FeatureSet.text_groups` belongs here
            for text queries. None: every value is its own group.
    """
    sums = group_sums(np.stack([values, np.ones(len(values))]), groups)
    drawn, sizes = resampled_sums(sums, num_resamples, seed)
    return percentile_interval(float(np.mean(values)), drawn / sizes, sums.shape[1], level)


def group_sums(values: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """`(C, G)` sums of each of `values` `(C, Q)` over its groups; None: every one is its own group."""
    if groups is None:
        return np.asarray(values, dtype=np.float64)
    group_of_value = np.unique(groups, return_inverse=True)[1]
    return np.stack([np.bincount(group_of_value, weights=row) for row in values])


def resampled_sums(sums: np.ndarray, num_resamples: int = 2000, seed: int = 0) -> np.ndarray:
    """`(C, num_resamples)` of `sums` `(C, G)`: each over as many groups as there are, drawn with replacement.

    Rows share their draws. More than 16,384 groups are dealt at random into so many batches, which are drawn in their
    place: sums vary as much, but for 1 part in 200. Whoever needs a mean has a row of sizes. Memory is a few MiB.
    """
    if sums.shape[1] > _MOST_GROUPS:
        batch = deal(sums.shape[1], _MOST_GROUPS, seed)
        sums = np.stack([np.bincount(batch, weights=row) for row in sums])
    num_groups = sums.shape[1]
    generator = np.random.default_rng(seed)
    found = np.empty((len(sums), num_resamples))
    rows = max(1, _DRAWN_AT_ONCE // num_groups)
    for start in range(0, num_resamples, rows):
        part = slice(start, min(start + rows, num_resamples))
        drawn = generator.integers(num_groups, size=(part.stop - start, num_groups))
        for own, row in zip(found, sums, strict=True):
            own[part] = np.take(row, drawn).sum(axis=1)
    return found


def deal(num_groups: int, num_batches: int, seed: int) -> np.ndarray:
    """`(num_groups,)` a batch for each, at random, as many to each as can be."""
    return np.random.default_rng((seed, 1)).permutation(num_groups) % num_batches


def percentile_interval(estimate: float, resampled: np.ndarray, num_groups: int, level: float = 0.95) -> Interval:
    """The expanded percentile interval of `num_groups` groups (Hesterberg 2015, What Teachers Should Know about the
    Bootstrap): percentiles that are as far out as Student's t with the variance of n - 1 is, not as the normal is.
    Plain percentiles of 20 images may cover the truth in 92 of 100 cases, not 95; from 300 on both are one.
    """
    low, high = np.quantile(resampled, [_tail(level, num_groups), 1 - _tail(level, num_groups)])
    return Interval(float(estimate), float(low), float(high))


def basic_interval(estimate: float, resampled: np.ndarray, num_groups: int, level: float = 0.95) -> Interval:
    """The estimate less what resamples differ from it, from 0 on (Davison and Hinkley 1997, section 5.2).

    For lengths and other sizes that chance makes too large: their resamples are too large once more, and percentiles of
    these would be beside the truth twice. It is widened to hold the estimate, which may itself be mostly chance.
    """
    around = percentile_interval(estimate, resampled, num_groups, level)
    low, high = 2 * estimate - around.high, 2 * estimate - around.low
    return Interval(estimate, max(0.0, min(low, estimate)), max(high, estimate))


def _tail(level: float, num_groups: int) -> float:
    """Share of resamples below the interval: `(1 - level) / 2` of infinitely many groups, and less of few."""
    if num_groups < 2:
        return 0.0  # nothing is known of how groups differ
    n = num_groups - 1
    return NormalDist().cdf(-_students_t(level, n) * (num_groups / n) ** 0.5)


def _students_t(level: float, n: int) -> float:
    """Quantile of Student's t with n degrees of freedom (Abramowitz and Stegun 26.7.5); within 1 % from n = 3 on."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    t = z + (z**3 + z) / (4 * n) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
    return t + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)


def share_interval(values: np.ndarray, groups: np.ndarray | None = None, *, level: float = 0.95) -> Interval:
    """Interval of the mean of `values` `(Q,)`, each a share from 0 to 1 or a yes or no.

    Yes and no of queries that each stand alone are binomial: Wilson's interval (1927), without drawing. All others get
    the `bootstrap`'s, which is `never_certain`.

    Args:
        groups: `(Q,)` integers, as for `bootstrap`.
    """
    num_groups = len(values) if groups is None else len(np.unique(groups))
    if num_groups == len(values) and np.isin(values, (0, 1)).all():
        return _wilson(float(np.mean(values)), num_groups, NormalDist().inv_cdf((1 + level) / 2))
    return never_certain(bootstrap(values, groups, level=level), num_groups, level)


def never_certain(interval: Interval, num_groups: int, level: float = 0.95) -> Interval:
    """The interval of a share; where all groups say 0, or all say 1, at least Wilson's of as many yes and no.

    Resamples of nothing but right answers are all right: they cannot know of the wrong ones that were not met.
    """
    if interval.estimate not in (0, 1):
        return interval
    wilson = _wilson(interval.estimate, num_groups, NormalDist().inv_cdf((1 + level) / 2))
    return Interval(interval.estimate, min(interval.low, wilson.low), max(interval.high, wilson.high))


def mean_over_classes(
    is_right: np.ndarray, classes: np.ndarray, *, level: float = 0.95
) -> tuple[float, Interval | None]:
    """The mean over classes of their shares, and its interval if answers are drawn anew within each class.

    It is Wilson's, of as many answers as would leave the mean as uncertain (Korn and Graubard 1998), by Student's t.
    The variance of a class's share is `p (1 - p) / (n - 1)`: right on average, however few its answers are.

    Args:
        is_right: `(Q,)` bool.
        classes: `(Q,)` integers; each class weighs the same.

    Returns:
        The mean, and None where a class has a single answer: nothing is known of how its answers differ.
    """
    group = np.unique(classes, return_inverse=True)[1]
    sizes = np.bincount(group)
    shares = np.bincount(group, weights=is_right) / sizes
    share, num_classes = float(shares.mean()), len(sizes)
    if sizes.min() < 2:
        return share, None
    variance = float((shares * (1 - shares) / (sizes - 1)).sum()) / num_classes**2
    # Where no class has both kinds of answers, as if all were of one share: that is the most it can vary.
    worth = share * (1 - share) / variance if variance else num_classes**2 / float((1 / sizes).sum())
    return share, _wilson(share, worth, _students_t(level, len(is_right) - num_classes))


def _wilson(share: float, count: float, z: float) -> Interval:
    """The shares that `count` answers do not speak against, at `z` standard deviations of the share asked about."""
    middle, squared = share + z**2 / (2 * count), z**2 / count
    half = z * (share * (1 - share) / count + squared / (4 * count)) ** 0.5
    low, high = (middle - half) / (1 + squared), (middle + half) / (1 + squared)
    return Interval(share, max(0.0, min(low, share)), min(1.0, max(high, share)))


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
