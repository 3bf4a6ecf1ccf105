"""Which checkpoint is the best: `best_by` of a training recipe, as a score of what a validation measured."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from core.errors import ConfigError, did_you_mean
from trainer.config import BEST_BY
from trainer.telemetry import names

SIX_RECALLS = tuple(
    names.val(names.of_direction(direction, names.recall(k))) for direction in names.DIRECTIONS for k in names.RECALL_KS
)


def check_best_by(best_by: str, measured: Collection[str]) -> None:
    """Raise where `best_by` is no metric that the run's validation measures."""
    if best_by != BEST_BY and best_by not in measured:
        raise ConfigError(f"best_by: validation measures no '{best_by}'.{did_you_mean(best_by, [BEST_BY, *measured])}")


def best_is(best_by: str, measured: Collection[str]) -> str:
    """What names the best checkpoint, for people."""
    if best_by != BEST_BY:
        return best_by
    return "the mean of the six recalls" if SIX_RECALLS[0] in measured else names.val(names.KNN)


def figures_of_best(best_by: str, measured: Collection[str]) -> tuple[str, ...]:
    """The metrics that `score` is made of."""
    if best_by != BEST_BY:
        return (best_by,)
    return SIX_RECALLS if SIX_RECALLS[0] in measured else (names.val(names.KNN),)


def score(best_by: str, metrics: Mapping[str, float]) -> float:
    """Higher is better. `auto`: the mean of the six recalls where there is text, else k-NN accuracy.

    VSE++ and its successors take the sum of the recalls, which orders checkpoints in the same way.
    """
    mean = float(np.mean([metrics[name] for name in figures_of_best(best_by, metrics)]))
    return -mean if names.lower_is_better(best_by) else mean
