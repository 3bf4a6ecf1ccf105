"""How often 95 % intervals hold the truth: 1,000 pairs of runs whose recall is known: `python -m benchmarks.coverage`.

Queries are captions, five of each image. Whether a run finds the image of a caption is a threshold on a sum of normals:
of the image, which both runs share; of the image in this run; of the caption, which both share; and of the caption in
this run. So captions of an image are right together, runs resemble each other, and the recall of each is known.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from benchmarks.measure import compare, publish
from eval.metrics import Interval, bootstrap, paired_bootstrap

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


SETTINGS = [
    Setting(num_images, *recalls) for num_images in (20, 50, 100, 300, 1000) for recalls in ((0.30, 0.33), (0.60, 0.70))
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
    """Shares of `num_pairs` pairs of runs in which `bootstrap` (of run a) and `paired_bootstrap` hold the truth."""
    held = {"bootstrap": 0, "paired_bootstrap": 0}
    for seed in range(num_pairs):
        ranks_a, ranks_b, image = draw_ranks(setting, seed)
        single = bootstrap((ranks_a <= K).astype(float), image, level=level, seed=seed)
        paired = paired_bootstrap(ranks_a, ranks_b, K, image, level=level, seed=seed)
        held["bootstrap"] += _holds(single, setting.recall_a)
        held["paired_bootstrap"] += _holds(paired, setting.gain)
    return {name: count / num_pairs for name, count in held.items()}


def plain_percentiles(setting: Setting, num_pairs: int, level: float = 0.95) -> dict[str, float]:
    """The same of the plain percentile interval, the textbook's, by a loop over resamples."""
    held = {"bootstrap": 0, "paired_bootstrap": 0}
    for seed in range(num_pairs):
        ranks_a, ranks_b, _ = draw_ranks(setting, seed)
        hits = [(ranks <= K).reshape(-1, CAPTIONS).mean(axis=1) for ranks in (ranks_a, ranks_b)]
        for name, values, truth in (
            ("bootstrap", hits[0], setting.recall_a),
            ("paired_bootstrap", hits[1] - hits[0], setting.gain),
        ):
            drawn = np.random.default_rng(seed).integers(len(values), size=(2000, len(values)))
            low, high = np.quantile(values[drawn].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
            held[name] += _holds(Interval(float(values.mean()), float(low), float(high)), truth)
    return {name: count / num_pairs for name, count in held.items()}


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
        for kind in ("paired_bootstrap", "bootstrap"):
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
    publish("coverage", comparisons, ["shardclip", "numpy"])


if __name__ == "__main__":
    main(sys.argv[1:])
