"""Curves of every metric that runs share, over the samples they have seen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eval.compare.early import ComparedRun
from eval.report.drawing.curves import Series, curves
from eval.report.drawing.style import Figure, Theme
from trainer.telemetry import names
from trainer.telemetry.names import DIRECTIONS, RECALL_KS
from trainer.trackers.metrics_csv import Row

_FIRST = (
    names.LOSS,
    names.VAL_LOSS,
    *(names.val(names.of_direction(d, names.recall(k))) for k in reversed(RECALL_KS) for d in DIRECTIONS),
    names.val(names.KNN),
    names.val(names.KNN1),
    names.val(names.ZERO_SHOT),
)
_SECTIONS = {names.TRAIN: "Training", names.VAL: "Validation"}


def shared_metrics(runs: Sequence[ComparedRun]) -> list[str]:
    """Those of training and validation that at least two runs have, the best known first, without what never moves."""
    of_run = [{name for row in run.rows for name in row.metrics} for run in runs]
    listed = dict.fromkeys(name for run in runs for row in run.rows for name in row.metrics)
    counted = [name for name in listed if sum(name in own for own in of_run) > 1]
    drawn = [name for name in counted if names.section(name) in _SECTIONS or name == names.IMAGES_PER_S]
    numbers = [name for name in drawn if len({y for run in runs for _, y in _points(run.rows, name)}) > 1]
    return [name for name in _FIRST if name in numbers] + [name for name in numbers if name not in _FIRST]


def is_headline(metric: str) -> bool:
    """Whether a page shows it at once."""
    return metric in _FIRST


def comparison_charts(runs: Sequence[ComparedRun], theme: Theme) -> dict[str, Figure]:
    """A chart of each, by the metric's name; a run has the same colour in all."""
    return {metric: _chart(metric, runs, theme) for metric in shared_metrics(runs)}


def _chart(metric: str, runs: Sequence[ComparedRun], theme: Theme) -> Figure:
    series = []
    for run in runs:
        points = _points(run.rows, metric)  # of a run without any, an empty curve keeps the colours of the others
        series.append(Series(run.name, [x for x, _ in points], [y for _, y in points]))
    within = names.within_section(metric).replace("_", " ").replace("/", ", ")
    section = _SECTIONS.get(names.section(metric), "Speed")
    marked = [one.name for one in series if len(one.x) <= 60] if names.section(metric) == names.VAL else []
    return curves(f"{section}: {within}", metric, series, theme, percent=names.is_share(metric), marked=marked)


def _points(rows: Sequence[Row], metric: str) -> list[tuple[int, float]]:
    found = [(row.samples_seen, row.metrics[metric]) for row in rows if metric in row.metrics]
    return [(x, float(y)) for x, y in found if isinstance(y, int | float) and np.isfinite(y)]
