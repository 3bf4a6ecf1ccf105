"""How often 95 % intervals hold the truth, where it is known: `python -m benchmarks.coverage`.

Queries are captions, five of each image. Whether a run finds the image of a caption is a threshold on a sum of normals:
of the image, which both runs share; of the image in this run; of the caption, which both share; and of the caption in
this run. So captions of an image are right together, runs resemble each other, and the recall of each is known.
Accuracies are of answers that are right or wrong by themselves: shares near 1, and means over classes of few pictures.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from benchmarks.measure import Comparison, compare, publish
from eval.metrics import Interval, mean_over_classes, paired_bootstrap, share_interval

CAPTIONS, K, FOUND, NOT_FOUND = 5, 10, 1, 100
PARTS = {
    "image": 0.4,
    "image in the run": 0.15,
    "caption": 0.25,
    "caption in the run": 0.2,
}  # variances; their sum is 1
NORMAL = NormalDist()


@dataclass(frozen=True)
class Setting:
    """A gallery, and the recall of two runs in infinitely many such galleries."""

    num_images: int
    recall_a: float
    recall_b: float

    @property
    def gain(self) -> float:
        """What a paired interval is to hold."""
        return self.recall_b - self.recall_a


@dataclass(frozen=True)
class Accuracy:
    """Pictures of classes, each with a share of right answers drawn once between `low` and `high`."""

    num_classes: int
    size: int  # pictures of each class
    low: float
    high: float

    def shares(self) -> np.ndarray:
        """`(num_classes,)`."""
        return np.random.default_rng(self.num_classes).uniform(self.low, self.high, self.num_classes)


SETTINGS = [
    *(Setting(n, *recalls) for n in (20, 50, 100, 300, 1000) for recalls in ((0.30, 0.33), (0.60, 0.70))),
    Setting(20, 0.95, 0.97),
    Setting(100, 0.99, 0.99),
]
ACCURACIES = [
    *(Accuracy(1, *cell) for cell in ((20, 0.95, 0.95), (100, 0.99, 0.99), (300, 0.99, 0.99), (1000, 0.5, 0.5))),
    *(Accuracy(*cell, 0.3, 0.9) for cell in ((100, 2), (100, 3), (50, 5), (20, 10), (20, 50))),
    Accuracy(100, 3, 0.97, 1.0),
]


def draw_ranks(setting: Setting, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ranks `(T,)` of both runs, and the image `(T,)` of each caption."""
    rng = np.random.default_rng((setting.num_images, seed))
    image = np.repeat(np.arange(setting.num_images), CAPTIONS)

    def part(name: str, size: int) -> np.ndarray:
        return PARTS[name] ** 0.5 * rng.standard_normal(size)

    shared = part("image", setting.num_images)[image] + part("caption", len(image))
    ranks = []
    for recall in (setting.recall_a, setting.recall_b):
        own = part("image in the run", setting.num_images)[image] + part("caption in the run", len(image))
        ranks.append(np.where(shared + own <= NORMAL.inv_cdf(recall), FOUND, NOT_FOUND))
    return ranks[0], ranks[1], image


def coverage(setting: Setting, num_pairs: int, level: float = 0.95) -> dict[str, float]:
    """Shares of pairs of runs in which `share_interval` (of run a) and `paired_bootstrap` hold the truth."""
    held = {"share_interval": 0, "paired_bootstrap": 0}
    for seed in range(num_pairs):
        ranks_a, ranks_b, image = draw_ranks(setting, seed)
        single = share_interval(ranks_a <= K, image, level=level)
        paired = paired_bootstrap(ranks_a, ranks_b, K, image, level=level, seed=seed)
        held["share_interval"] += _holds(single, setting.recall_a)
        held["paired_bootstrap"] += _holds(paired, setting.gain)
    return {name: count / num_pairs for name, count in held.items()}


def plain_percentiles(setting: Setting, num_pairs: int, level: float = 0.95) -> dict[str, float]:
    """The same of the plain percentile interval, the textbook's, by a loop over resamples."""
    held = {"share_interval": 0, "paired_bootstrap": 0}
    for seed in range(num_pairs):
        ranks_a, ranks_b, _ = draw_ranks(setting, seed)
        hits = [(ranks <= K).reshape(-1, CAPTIONS).mean(axis=1) for ranks in (ranks_a, ranks_b)]
        for name, values, truth in (
            ("share_interval", hits[0], setting.recall_a),
            ("paired_bootstrap", hits[1] - hits[0], setting.gain),
        ):
            drawn = np.random.default_rng(seed).integers(len(values), size=(2000, len(values)))
            low, high = np.quantile(values[drawn].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
            held[name] += _holds(Interval(float(values.mean()), float(low), float(high)), truth)
    return {name: count / num_pairs for name, count in held.items()}


def accuracy_coverage(setting: Accuracy, num_runs: int) -> dict[str, float]:
    """Shares of `num_runs` runs in which our interval, and the percentiles of a bootstrap within classes, hold it."""
    shares, held, rng = setting.shares(), {"eval.metrics": 0, "plain percentiles": 0}, np.random.default_rng(0)
    labels = np.repeat(np.arange(setting.num_classes), setting.size)
    for _ in range(num_runs):
        is_right = rng.random(len(labels)) < shares[labels]
        found = np.bincount(labels, is_right) / setting.size
        drawn = rng.binomial(setting.size, found, size=(1000, len(found))).mean(axis=1) / setting.size
        low, high = np.quantile(drawn, [0.025, 0.975])
        ours = share_interval(is_right) if setting.num_classes == 1 else mean_over_classes(is_right, labels)[1]
        assert ours is not None, "every class has two pictures"
        held["eval.metrics"] += _holds(ours, float(shares.mean()))
        held["plain percentiles"] += _holds(
            Interval(float(found.mean()), float(low), float(high)), float(shares.mean())
        )
    return {name: count / num_runs for name, count in held.items()}


def _holds(interval: Interval, truth: float) -> bool:
    return interval.low - 1e-12 <= truth <= interval.high + 1e-12


METHODS: Mapping[str, Callable[[Setting, int], dict[str, float]]] = {
    "eval.metrics": coverage,
    "plain percentiles": plain_percentiles,
}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=1000)
    options = parser.parse_args(arguments)
    comparisons = []
    for setting in SETTINGS:
        found = {name: method(setting, options.pairs) for name, method in METHODS.items()}
        print(setting, found, flush=True)
        for kind in ("paired_bootstrap", "share_interval"):
            truth = f"a gain of {100 * setting.gain:.0f} points" if kind == "paired_bootstrap" else "the recall itself"
            comparisons.append(
                compare(
                    f"{kind}: {setting.num_images:,} images, recall {setting.recall_a:.2f} and {setting.recall_b:.2f}",
                    {name: [100 * held[kind]] for name, held in found.items()},
                    ours="eval.metrics",
                    unit="% of 95 % intervals that hold the truth",
                    input=f"{options.pairs:,} pairs of runs, {CAPTIONS} captions an image; the truth is {truth}",
                )
            )
    comparisons += [_of_accuracy(setting, options.pairs) for setting in ACCURACIES]
    publish("coverage", comparisons, ["shardclip", "numpy"])


def _of_accuracy(setting: Accuracy, num_runs: int) -> Comparison:
    found = accuracy_coverage(setting, num_runs)
    print(setting, found, flush=True)
    one, pictures = setting.num_classes == 1, f"{setting.size:,} pictures"
    what = f"share_interval: {pictures}, accuracy {setting.low:.2f}"
    classes = f"mean_over_classes: {setting.num_classes} classes of {pictures}, accuracies {setting.low:.2f} to "
    return compare(
        what if one else f"{classes}{setting.high:.2f}",
        {name: [100 * held] for name, held in found.items()},
        ours="eval.metrics",
        unit="% of 95 % intervals that hold the truth",
        input=f"{num_runs:,} runs; the truth is the {'accuracy' if one else 'mean of the classes accuracies'}",
    )


if __name__ == "__main__":
    main(sys.argv[1:])
