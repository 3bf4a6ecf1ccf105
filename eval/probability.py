"""Probabilities that an answer is right: a map from its score, fitted and judged on other images. Free of torch.

Legend: `Q` queries, `b` bins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from eval.metrics import Interval, basic_interval, group_sums, percentile_interval, resampled_sums

NUM_BINS = 10
_STEPS, _SAME = 100, 1e-12  # of Newton's method, which needs some six
_HALVINGS = 40


@dataclass(frozen=True)
class PlattMap:
    """A score `x` is right with probability `1 / (1 + exp(-(slope * x + bias)))`."""

    slope: float
    bias: float

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """`(Q,)` probabilities of scores `(Q,)`."""
        return np.exp(-np.logaddexp(0, -(self.slope * np.asarray(x, dtype=np.float64) + self.bias)))


def fit_platt(x: np.ndarray, is_right: np.ndarray) -> PlattMap:
    """The map of greatest likelihood (Platt 1999, with his targets, by Newton's method).

    The targets, (n+ + 1) / (n+ + 2) and 1 / (n- + 2) in place of 1 and 0, keep it finite where one score parts all
    right answers from all wrong ones, or where none is right.

    Args:
        x: `(Q,)` scores; where all are equal, the map is a constant.
        is_right: `(Q,)` bool.
    """
    x, is_right = np.asarray(x, dtype=np.float64), np.asarray(is_right, dtype=bool)
    num_right, num_wrong = int(is_right.sum()), int((~is_right).sum())
    target = np.where(is_right, (num_right + 1) / (num_right + 2), 1 / (num_wrong + 2))
    middle, spread = x.mean(), x.std()
    if spread <= 1e-12 * max(1.0, abs(middle)):
        return PlattMap(0.0, float(np.log(target.mean() / (1 - target.mean()))))
    inputs = np.stack([(x - middle) / spread, np.ones(len(x))])  # (2, Q)

    def loss(weights: np.ndarray) -> float:
        odds = weights @ inputs
        return float(np.sum(np.logaddexp(0, odds) - target * odds))

    weights, best = np.zeros(2), loss(np.zeros(2))
    for _ in range(_STEPS):
        p = PlattMap(*weights)(inputs[0])
        gradient = inputs @ (p - target)
        step = np.linalg.solve((inputs * (p * (1 - p))) @ inputs.T, gradient)
        for halving in range(_HALVINGS):
            moved = weights - step / 2**halving
            if (reached := loss(moved)) <= best:
                break
        else:
            break  # nothing is better by as much as can be told
        gained, weights, best = best - reached, moved, reached
        if gained <= _SAME * max(1.0, best):
            break
    slope = float(weights[0] / spread)
    return PlattMap(slope, float(weights[1] - slope * middle))


def folds_of(groups: np.ndarray, num_folds: int, seed: int) -> np.ndarray:
    """`(Q,)` the fold of each query: whole groups `(Q,)`, dealt out at random, as many to each as can be."""
    group = np.unique(groups, return_inverse=True)[1]
    fold = np.empty(group.max() + 1, dtype=np.int64)
    fold[np.random.default_rng(seed).permutation(len(fold))] = np.arange(len(fold)) % num_folds
    return fold[group]


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """Probabilities `(Q,)` of each query from what was fitted on the other folds: by the map, and the share right."""

    mapped: np.ndarray
    constant: np.ndarray


def out_of_fold(
    x: np.ndarray,
    is_right: np.ndarray,
    fold: np.ndarray,
    fit: Callable[[np.ndarray, np.ndarray], Callable[[np.ndarray], np.ndarray]] = fit_platt,
) -> OutOfFold:
    """Of scores `(Q,)`; no query is judged by what was fitted on its own fold.

    Args:
        fold: `(Q,)` of at least 2 folds, all of which are used.
    """
    mapped, constant = np.empty(len(x)), np.empty(len(x))
    for own in np.unique(fold):
        judged, others = fold == own, fold != own
        mapped[judged] = fit(x[others], is_right[others])(x[judged])
        constant[judged] = is_right[others].mean()
    return OutOfFold(mapped, constant)


def equal_count_bins(probability: np.ndarray, num_bins: int = NUM_BINS) -> np.ndarray:
    """`(Q,)` bin of each, 0 to `num_bins - 1`, as many in each as equal probabilities allow: these share a bin."""
    edges = np.quantile(probability, np.linspace(0, 1, num_bins + 1))
    return np.searchsorted(edges[1:-1], probability)


def ece(probability: np.ndarray, is_right: np.ndarray) -> float:
    """Expected calibration error, 0 to 1, over equal-count bins (Naeini et al. 2015; Guo et al. 2017).

    Of the queries of a bin, the mean probability and the share that is right differ by so much, as a mean over queries.
    """
    excess = np.bincount(equal_count_bins(probability), weights=probability - is_right)
    return float(np.abs(excess).sum() / len(probability))


def ece_of_chance(probability: np.ndarray) -> float:
    """What `ece` would be on average if the probabilities were the truth and queries fell independently.

    Each bin's excess is then nearly normal with the variance of its sum, and |excess| is sqrt(2 / pi) of its deviation.
    """
    variance = np.bincount(equal_count_bins(probability), weights=probability * (1 - probability))
    return float(np.sqrt(2 / np.pi * variance).sum() / len(probability))


def ece_interval(probability: np.ndarray, is_right: np.ndarray, groups: np.ndarray) -> Interval:
    """`ece` with its 95 % `basic_interval`, drawing whole groups `(Q,)`; the bins stay.

    It reaches down to 0 wherever chance alone may make of a perfect map what was found: chance is what the bins of the
    resamples differ from those found.
    """
    bins = equal_count_bins(probability)
    excess = np.zeros((bins.max() + 2, len(bins)))
    excess[bins, np.arange(len(bins))] = probability - is_right
    excess[-1] = 1
    sums = group_sums(excess, groups)
    *drawn, sizes = resampled_sums(sums)
    of_bin, num_groups = np.array(drawn) / sizes, sums.shape[1]  # (b, resamples)
    found = sums[:-1].sum(axis=1) / len(bins)  # (b,)
    interval = basic_interval(ece(probability, is_right), np.abs(of_bin).sum(axis=0), num_groups)
    chance = percentile_interval(0.0, np.abs(of_bin - found[:, None]).sum(axis=0), num_groups)
    return replace(interval, low=0.0) if interval.estimate <= chance.high else interval


def brier_skill(squares: np.ndarray, of_constant: np.ndarray, groups: np.ndarray) -> Interval:
    """1 - Brier score / Brier score of the constant, from squared errors `(Q,)` of both: 0 is no better, 1 is perfect.

    0 where the constant is never wrong: there is nothing to gain.
    """
    if not of_constant.any():
        return Interval(0.0, 0.0, 0.0)
    sums = group_sums(np.stack([squares, of_constant]), groups)
    ours, theirs = resampled_sums(sums)
    skill = 1 - ours / np.maximum(theirs, np.finfo(np.float64).tiny)
    return percentile_interval(1 - float(squares.mean() / of_constant.mean()), skill, sums.shape[1])
