"""Reliability diagrams: how often answers of a probability are right, and how many have it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.ticker import PercentFormatter

from eval.report.drawing.style import LIGHT, Theme, direction_colour, dress, legend, new_figure, spoken


def reliability(directions: Mapping[str, Mapping[str, Any]], theme: Theme = LIGHT) -> Figure:
    """Of each direction `bins` (mean `predicted` probability, share `right`, `count`) and a `histogram` from 0 to 1.

    Whiskers are two standard errors of the share of so many independent answers.
    """
    note = "on the dashed line, as many answers are right as their probability says; bars: how many have it"
    figure, axes = new_figure(theme, 7.2, 5.6, "Reliability of the first answer", note)
    grid = GridSpec(2, 1, figure, height_ratios=(4, 1))
    axes.set_subplotspec(grid[0])
    below = figure.add_subplot(grid[1], sharex=axes, facecolor=theme.paper)
    largest = 0.0
    for direction, own in directions.items():
        predicted, right, count = (np.array([bin[of] for bin in own["bins"]]) for of in ("predicted", "right", "count"))
        error = 2 * np.sqrt(np.maximum(right * (1 - right), 0.25 / count) / count)
        colour, label = direction_colour(direction, theme), f"{spoken(direction)}, {_range(count)} queries a point"
        low = np.minimum(error, right)
        axes.errorbar(predicted, right, (low, error), fmt="none", ecolor=colour, elinewidth=1, alpha=0.5, zorder=2)
        axes.plot(predicted, right, marker="o", markersize=5, linewidth=1.6, color=colour, label=label, zorder=3)
        largest = max(largest, float((right + error).max()), float(predicted.max()))
    end = min(1.0, np.ceil(10 * largest) / 10)
    axes.plot([0, end], [0, end], linestyle="--", linewidth=1.2, color=theme.quiet, zorder=1)
    axes.set(xlim=(0, end), ylim=(0, end), ylabel="share that is right")
    axes.tick_params(labelbottom=False)
    _histograms(below, directions, theme)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    legend(axes, theme)
    return figure


def _histograms(axes: Axes, directions: Mapping[str, Mapping[str, Any]], theme: Theme) -> None:
    for number, (direction, own) in enumerate(directions.items()):
        shares = np.array(own["histogram"]) / max(sum(own["histogram"]), 1)
        width = 1 / len(shares) / (len(directions) + 0.4)
        left = np.arange(len(shares)) / len(shares) + (number + 0.2) * width
        axes.bar(left, shares, width=width, align="edge", color=direction_colour(direction, theme), zorder=2)
    dress(axes, theme)
    axes.set(xlabel="probability of being right, from other folds", ylabel="queries")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def _range(counts: np.ndarray) -> str:
    least, most = int(counts.min()), int(counts.max())
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"
