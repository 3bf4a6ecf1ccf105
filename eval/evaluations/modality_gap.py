"""Modality gap: how far pictures and captions lie apart as wholes (Liang et al. 2022, Mind the Gap)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from core.errors import ConfigError, DataError
from eval.evaluations.evaluation import Evaluation, Measured, Need, Section, Subject
from eval.metrics import FeatureSet, Interval, basic_interval, bootstrap, deal, percentile_interval
from eval.spread import spread
from trainer.telemetry import names

if TYPE_CHECKING:
    from eval.report.drawing.style import Figure, Theme

_ROWS = 512  # of a product at a time, or fewer where it would have more than
_BLOCK_BYTES = 64 * 2**20
_ROWS_AT_ONCE = 4096  # of what is computed row by row
_BARS = 60  # of the histogram of cosines
_RESAMPLES, _RESAMPLES_AT_ONCE = 2000, 100
_BATCHES = 2000  # of groups, which are drawn in their place where there are more


@dataclass(frozen=True)
class ModalityGap(Evaluation):
    """Centroids of pictures and captions, cosines of pairs and of others, and how each fills its sphere.

    Attributes:
        most: rows of each kind that uniformity compares with one another, up to 50,000; of more, so many are drawn.
        num_points: of each kind, on the map, up to 10,000.
        num_others: pictures with a caption of another, in the histogram, up to 10,000,000.
        seed: draws them.
    """

    most: int = 5000
    num_points: int = 400
    num_others: int = 20_000
    seed: int = 0

    needs: ClassVar[tuple[Need, ...]] = ("text",)
    title: ClassVar[str] = "Modality gap"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seed < 0:
            raise ConfigError(f"modality_gap: seed is {self.seed}. Give 0 or more.")
        for name, least, most in (("most", 2, 50_000), ("num_points", 3, 10_000), ("num_others", 1, 10_000_000)):
            if not least <= getattr(self, name) <= most:
                raise ConfigError(f"modality_gap: {name} is {getattr(self, name):,}. Give {least} to {most:,}.")

    def figures(self) -> tuple[str, ...]:
        """Of the gap, of pairs, and of each kind alone."""
        return (
            names.GAP_DISTANCE, names.GAP_VARIANCE, names.GAP_PAIRS, names.GAP_OTHERS, names.GAP_ALIGNMENT,
            names.GAP_IMAGE_UNIFORMITY, names.GAP_TEXT_UNIFORMITY,
        )  # fmt: skip

    def measure(self, subject: Subject) -> Measured:
        """Of all pictures and captions of the set.

        Raises:
            DataError: there is one picture alone.
        """
        from core.distributed import on_main  # with torch, which recipes do without

        assert subject.pairs is not None
        pairs = subject.pairs
        if len(pairs.images) < 2:
            raise DataError("modality_gap: the set has 1 picture, and uniformity compares pictures. Measure 2 or more.")
        uniform = {
            names.GAP_IMAGE_UNIFORMITY: uniformity(drawn(pairs.images, self.most, self.seed)),
            names.GAP_TEXT_UNIFORMITY: uniformity(drawn(pairs.texts, self.most, self.seed)),
        }

        def compare() -> tuple[dict[str, float], dict[str, Interval], dict[str, Any]]:
            return self._compared(pairs)

        figures, intervals, shown = on_main(compare)
        return Measured({**figures, **uniform}, intervals, shown)

    def _compared(self, pairs: FeatureSet) -> tuple[dict[str, float], dict[str, Interval], dict[str, Any]]:
        own = _in_blocks(
            lambda part: np.einsum(
                "td,td->t", pairs.images[pairs.image_of_text[part]].astype(np.float64), pairs.texts[part]
            ),
            len(pairs.texts),
        )
        intervals = {
            names.GAP_DISTANCE: distance_interval(pairs),
            names.GAP_PAIRS: bootstrap(own, pairs.text_groups),
            names.GAP_ALIGNMENT: bootstrap(2 - 2 * own, pairs.text_groups),
        }
        figures = {name: interval.estimate for name, interval in intervals.items()}
        figures |= {
            names.GAP_VARIANCE: variance_share(pairs.images, pairs.texts),
            names.GAP_OTHERS: mean_cosine_of_others(pairs),
        }
        others = cosines_of_others(pairs, self.num_others, self.seed)
        least, most = min(own.min(), others.min(initial=1)), max(own.max(), others.max(initial=-1))
        edges = np.linspace(least, most + 1e-6, _BARS + 1)
        shown = {
            "num_images": len(pairs.images),
            "num_captions": len(pairs.texts),
            "width": pairs.images.shape[1],
            "cosines": {
                "edges": edges.round(6).tolist(),
                "pairs": np.histogram(own, edges)[0].tolist(),
                "others": np.histogram(others, edges)[0].tolist(),
            },
            "map": principal_map(
                drawn(pairs.images, self.num_points, self.seed), drawn(pairs.texts, self.num_points, self.seed)
            ),
        }
        return figures, intervals, shown

    @staticmethod
    def section(part: Mapping[str, Any]) -> Section:
        """The figures, large."""
        figures = part["figures"]
        low, high = (part["intervals"][names.GAP_DISTANCE][end] for end in ("low", "high"))
        values = (
            (f"{figures[names.GAP_DISTANCE]:.3f}", f"between the centroids ({low:.3f} to {high:.3f})"),
            (
                f"{100 * figures[names.GAP_VARIANCE]:.1f} %",
                f"of the variance along the gap; {100 / part['width']:.1f} % by chance",
            ),
            (f"{figures[names.GAP_PAIRS]:.3f}", "cosine of pairs"),
            (f"{figures[names.GAP_OTHERS]:.3f}", "cosine of others"),
            (f"{figures[names.GAP_ALIGNMENT]:.3f}", "alignment"),
            (f"{figures[names.GAP_IMAGE_UNIFORMITY]:.2f}", "uniformity of pictures"),
            (f"{figures[names.GAP_TEXT_UNIFORMITY]:.2f}", "uniformity of captions"),
        )
        return Section(
            f"Whether {part['num_images']:,} pictures and {part['num_captions']:,} captions share a region of their "
            "sphere. A distance of 0 says that their centroids are one, 2 is the most there can be. Alignment is the "
            "mean squared distance of pairs, uniformity the log of the mean Gaussian potential; less is better.",
            values,
        )

    @staticmethod
    def charts(part: Mapping[str, Any], folder: Path, theme: Theme) -> dict[str, Figure]:
        """Cosines of pairs and of others; and both kinds on a plane."""
        from eval.report.drawing.gap import cosine_histogram, two_kinds

        return {"cosines": cosine_histogram(part["cosines"], theme), "plane": two_kinds(part["map"], theme)}


def drawn(rows: np.ndarray, most: int, seed: int) -> np.ndarray:
    """All rows, or `most` of them drawn at random, in order."""
    if len(rows) <= most:
        return rows
    return rows[np.sort(np.random.default_rng(seed).permutation(len(rows))[:most])]


def distance(images: np.ndarray, texts: np.ndarray) -> float:
    """Euclidean distance of the centroids of `(N, D)` and `(T, D)`, unit length: 0 to 2 (Liang et al. 2022)."""
    return float(np.linalg.norm(_centroid(images) - _centroid(texts)))


def distance_interval(pairs: FeatureSet, seed: int = 0) -> Interval:
    """`distance` with its 95 % interval, drawing images with all their captions.

    It reaches down to 0 wherever chance alone may make of equal centroids what was found: N pictures and T captions
    that are spread evenly are some sqrt(1 / N + 1 / T) apart. Chance is how far the resamples' gaps are from the one
    that was found. More than 2,000 groups are dealt into so many batches at random, as in `resampled_sums`: memory is
    some tens of megabytes.
    """
    sums = _group_totals(pairs, seed)  # (groups, 2D + 2)
    num_groups, width = len(sums), pairs.images.shape[1]

    def gap(total: np.ndarray) -> np.ndarray:
        ours: np.ndarray = total[:, :width] / total[:, -2:-1] - total[:, width:-2] / total[:, -1:]
        return ours

    found = gap(sums.sum(axis=0, keepdims=True))
    generator = np.random.default_rng(seed)
    resampled, by_chance = np.empty(_RESAMPLES), np.empty(_RESAMPLES)
    for start in range(0, _RESAMPLES, _RESAMPLES_AT_ONCE):
        part = slice(start, start + _RESAMPLES_AT_ONCE)
        times = np.zeros((_RESAMPLES_AT_ONCE, num_groups))
        for row in times:
            row += np.bincount(generator.integers(num_groups, size=num_groups), minlength=num_groups)
        gaps = gap(times @ sums)
        resampled[part], by_chance[part] = np.linalg.norm(gaps, axis=1), np.linalg.norm(gaps - found, axis=1)
    interval = basic_interval(distance(pairs.images, pairs.texts), resampled, num_groups)
    by_chance *= (num_groups / max(1, num_groups - 1)) ** 0.5  # resamples vary by as much less
    chance = percentile_interval(0.0, by_chance, num_groups)
    return replace(interval, low=0.0) if interval.estimate <= chance.high else interval


def _group_totals(pairs: FeatureSet, seed: int) -> np.ndarray:
    """`(groups, 2D + 2)` of images with their captions: sums of both, and how many they are."""
    first_text = np.unique(pairs.image_of_text, return_index=True)[1]
    group_of_image = pairs.text_groups[first_text]  # of captions made from class names, a class
    groups = np.unique(group_of_image, return_inverse=True)[1]
    if groups.max() >= _BATCHES:
        groups = deal(groups.max() + 1, _BATCHES, seed)[groups]
    group_of_text = groups[pairs.image_of_text]
    width = pairs.images.shape[1]
    sums = np.zeros((groups.max() + 1, 2 * width + 2))
    sums[:, :width] = sums_of(pairs.images, np.arange(len(groups)), groups, len(sums))
    sums[:, width:-2] = sums_of(pairs.texts, np.arange(len(group_of_text)), group_of_text, len(sums))
    sums[:, -2], sums[:, -1] = np.bincount(groups), np.bincount(group_of_text)
    return sums


def variance_share(images: np.ndarray, texts: np.ndarray) -> float:
    """Share of the variance of both kinds together, each weighing as much, that lies along the line of their centroids.

    1 / D in a round cloud; 1 where each kind is one point. 0 where there is no gap.
    """
    one, other = _centroid(images), _centroid(texts)
    length, middle = np.linalg.norm(one - other), (one + other) / 2
    if length == 0:
        return 0.0
    line = (one - other) / length

    def squares(rows: np.ndarray) -> np.ndarray:
        """`(2,)` means over rows: along the line, and in all directions."""

        def of_block(part: slice) -> np.ndarray:
            off = rows[part].astype(np.float64) - middle
            return np.stack([(off @ line) ** 2, (off**2).sum(axis=1)], axis=1)

        means: np.ndarray = _in_blocks(of_block, len(rows)).mean(axis=0)
        return means

    along, everywhere = (squares(images) + squares(texts)) / 2
    return float(along / everywhere)


def mean_cosine_of_others(pairs: FeatureSet) -> float:
    """Mean cosine of every image with every text that is not right for it; 0 where all are right.

    From sums: all of `N * T` less the right ones, none of which is computed alone.
    """
    right = pairs.right
    num_said = int(max(right.says.max(), right.holds.max())) + 1
    texts, holders = np.argsort(right.says, kind="stable"), np.argsort(right.holds, kind="stable")
    of_right = 0.0
    for start in range(0, num_said, _ROWS_AT_ONCE):
        saying = texts[slice(*np.searchsorted(right.says[texts], (start, start + _ROWS_AT_ONCE)))]
        holding = holders[slice(*np.searchsorted(right.holds[holders], (start, start + _ROWS_AT_ONCE)))]
        said = sums_of(pairs.texts, saying, right.says[saying] - start, _ROWS_AT_ONCE)
        images = sums_of(pairs.images, right.images[holding], right.holds[holding] - start, _ROWS_AT_ONCE)
        of_right += float(np.einsum("sd,sd->", said, images))
    count = np.bincount(right.says, minlength=num_said)[right.holds].sum()
    everything = pairs.images.sum(axis=0, dtype=np.float64) @ pairs.texts.sum(axis=0, dtype=np.float64)
    num_others = len(pairs.images) * len(pairs.texts) - int(count)
    return float((everything - of_right) / num_others) if num_others else 0.0


def cosines_of_others(pairs: FeatureSet, count: int, seed: int) -> np.ndarray:
    """At most `count` cosines of an image and a text drawn at random, without those that are right."""
    generator = np.random.default_rng(seed)
    images, texts = generator.integers(len(pairs.images), size=count), generator.integers(len(pairs.texts), size=count)
    wrong = ~pairs.right.are_right(images, texts)
    images, texts = images[wrong], texts[wrong]
    return _in_blocks(
        lambda part: np.einsum("pd,pd->p", pairs.images[images[part]], pairs.texts[texts[part]]), len(images)
    )


def uniformity(rows: np.ndarray, t: float = 2.0) -> float:
    """Log of the mean of `exp(-t * |x - y|^2)` over pairs of `(R, D)`, unit length (Wang and Isola 2020; collective).

    0 (collapsed) down to about -2t; R is at least 2.
    """

    def potential(part: slice) -> np.ndarray:
        cosines = (rows[part] @ rows.T).astype(np.float64)
        found = np.exp(-2 * t * (1 - np.minimum(cosines, 1)))
        own = np.arange(part.start, part.start + len(found))
        found[np.arange(len(found)), own] = 0
        return found.sum(axis=1)

    of_rows = spread(len(rows), max(1, min(_ROWS, _BLOCK_BYTES // (16 * len(rows)))), potential)
    return float(np.log(of_rows.sum() / (len(rows) * (len(rows) - 1))))


def principal_map(images: np.ndarray, texts: np.ndarray) -> dict[str, Any]:
    """`{"images": [[x, y], ...], "texts": ..., "shares": [of the variance, ...]}` on the first two principal axes."""
    rows = np.concatenate([images, texts]).astype(np.float64)
    rows -= rows.mean(axis=0)
    values, axes = np.linalg.eigh(rows.T @ rows)
    axes = axes[:, [-1, -2]]
    axes *= np.where(axes[np.abs(axes).argmax(axis=0), [0, 1]] < 0, -1, 1)  # a sign of its own has no axis
    places = (rows @ axes).round(4).tolist()
    shares = (values[[-1, -2]] / max(values.sum(), np.finfo(np.float64).tiny)).round(4).tolist()
    return {"images": places[: len(images)], "texts": places[len(images) :], "shares": shares}


def sums_of(rows: np.ndarray, chosen: np.ndarray, groups: np.ndarray, num_groups: int) -> np.ndarray:
    """`(num_groups, D)` float64 sums of some of `rows` `(R, D)` over their groups.

    Args:
        chosen, groups: `(n,)` each: which rows are added, and to which group.
    """
    sums = np.zeros((num_groups, rows.shape[1]))
    order = np.argsort(groups, kind="stable")
    for start in range(0, len(order), _ROWS_AT_ONCE):
        part = order[start : start + _ROWS_AT_ONCE]
        own, first = np.unique(groups[part], return_index=True)
        sums[own] += np.add.reduceat(rows[chosen[part]].astype(np.float64), first, axis=0)
    return sums


def _in_blocks(work: Callable[[slice], np.ndarray], num_rows: int) -> np.ndarray:
    """`(num_rows, ...)` of what `work` gives for each block of rows: copies of features are never whole."""
    starts = range(0, max(num_rows, 1), _ROWS_AT_ONCE)  # of none, one empty slice
    return np.concatenate([work(slice(start, min(start + _ROWS_AT_ONCE, num_rows))) for start in starts])


def _centroid(rows: np.ndarray) -> np.ndarray:
    middle: np.ndarray = rows.mean(axis=0, dtype=np.float64)
    return middle
