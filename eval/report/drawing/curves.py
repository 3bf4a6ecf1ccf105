"""Curves over samples and over a grid, and bars of recall, ranks and classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from eval.report.drawing.style import LIGHT, Theme, direction_colour, legend, new_figure, spoken
from eval.report.lettering import cut, thousands

_LINES = ("-", "--", ":", "-.")  # the next one where colours begin again


@dataclass(frozen=True)
class Series:
    """One curve: x increases; without points it is not drawn, and keeps its colour from the next."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


def recall_bars(
    recalls: Mapping[str, Mapping[int, float]],
    intervals: Mapping[str, Mapping[str, Mapping[str, float]]],
    note: str,
    theme: Theme = LIGHT,
) -> Figure:
    """Recall@K of both directions with their intervals; `recalls[direction][k]` is 0 to 1."""
    figure, axes = new_figure(theme, 7.2, 4.2, "Recall@K", note)
    for offset, direction in ((-0.2, "image_to_text"), (0.2, "text_to_image")):
        ks, colour = list(recalls[direction]), direction_colour(direction, theme)
        x, y = np.arange(len(ks)) + offset, np.array(list(recalls[direction].values()))
        axes.bar(x, y, width=0.36, color=colour, label=spoken(direction), zorder=2)
        if intervals:
            ends = [(intervals[direction][str(k)]["low"], intervals[direction][str(k)]["high"]) for k in ks]
            errors = np.abs(np.array(ends).T - y)
            axes.errorbar(x, y, errors, fmt="none", ecolor=theme.ink, elinewidth=1, capsize=3, alpha=0.6, zorder=3)
        for place, value, k in zip(x, y, ks, strict=True):
            top = intervals[direction][str(k)]["high"] if intervals else value
            axes.annotate(f"{100 * value:.1f}", (place, top), (0, 4), textcoords="offset points", ha="center",
                          color=theme.ink, fontsize=9.5, fontweight="bold")  # fmt: skip
    axes.set_xticks(range(len(ks)), [f"R@{k}" for k in ks], fontsize=11)
    axes.set_ylim(0, min(1.12, 1.2 * max(max(r.values()) for r in recalls.values()) + 0.05))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(axis="x", visible=False)
    legend(axes, theme)
    return figure


def rank_histogram(histograms: Mapping[str, Sequence[int]], edges: Sequence[int], theme: Theme = LIGHT) -> Figure:
    """Where the right answer stood: share of queries per band of ranks, bands growing as powers do."""
    figure, axes = new_figure(theme, 7.2, 4.2, "Rank of the right answer", "share of queries; 1 is best")
    for offset, (direction, counts) in zip((-0.2, 0.2), histograms.items(), strict=True):
        shares = np.array(counts) / max(sum(counts), 1)
        axes.bar(np.arange(len(counts)) + offset, shares, width=0.38, color=direction_colour(direction, theme),
                 label=spoken(direction), zorder=2)  # fmt: skip
    names = [f"{low}" if high - low == 1 else f"{low}–{high - 1}" for low, high in pairwise(edges)]
    axes.set_xticks(range(len(names)), names)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(axis="x", visible=False)
    axes.set_xlabel("rank")
    legend(axes, theme)
    return figure


def curves(
    title: str,
    note: str,
    series: Sequence[Series],
    theme: Theme = LIGHT,
    *,
    percent: bool = False,
    marked: Sequence[str] = (),
) -> Figure:
    """Curves over samples seen, each with its last value beside its end; `marked` ones carry points."""
    figure, axes = new_figure(theme, 7.2, 4.2, title, note)
    colours = [theme.image_to_text, theme.text_to_image, theme.third, theme.quiet]
    endings = []
    for number, one in enumerate(series):
        if not len(one.x):
            continue
        colour, y = colours[number % len(colours)], np.asarray(one.y, dtype=float)
        is_marked = one.name in marked or len(y) < 3
        if len(y) > 60 and not is_marked:  # a noisy line: the raw one pale behind its running mean
            axes.plot(one.x, y, color=colour, linewidth=0.8, alpha=0.28, zorder=2)
            y = _smooth(y)
        marker = "o" if is_marked else None
        style = _LINES[number // len(colours) % len(_LINES)]
        axes.plot(one.x, y, style, color=colour, linewidth=2, label=one.name, zorder=3, marker=marker, markersize=4.5)
        endings.append((float(y[-1]), one.x[-1], colour))
    axes.set_xlabel("samples seen")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: thousands(value)))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    if percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.set_ylim(bottom=0)
    _label_endings(axes, endings, percent)
    legend(axes, theme, is_single=len(series) == 1)
    return figure


def grid_curve(
    title: str, note: str, grid: Sequence[float], shares: Sequence[float], chosen: Sequence[float], theme: Theme = LIGHT
) -> Figure:
    """Shares, 0 to 1, over a grid of powers of ten, from large to small; `chosen` values of it are marked."""
    figure, axes = new_figure(theme, 7.2, 4.2, title, note)
    axes.plot(range(len(grid)), shares, color=theme.image_to_text, linewidth=2, marker="o", markersize=4.5, zorder=3)
    for place in sorted({list(grid).index(value) for value in chosen}):
        axes.plot(place, shares[place], "o", markersize=10, color=theme.text_to_image, zorder=4)
    for place, share in enumerate(shares):
        axes.annotate(f"{100 * share:.1f}", (place, share), (0, 9), textcoords="offset points", ha="center",
                      color=theme.ink, fontsize=9.5, fontweight="bold", zorder=5,
                      bbox={"facecolor": theme.paper, "edgecolor": "none", "pad": 0.8})  # fmt: skip
    axes.set_xticks(range(len(grid)), [f"$10^{{{round(np.log10(value))}}}$" for value in grid])
    low, high = min(shares), max(shares)
    room = max(0.02, 0.25 * (high - low))
    axes.set_ylim(max(0.0, low - room), high + 1.4 * room)
    axes.set_xlim(-0.4, len(grid) - 0.6)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.set_xlabel("regulariser, strong to weak")
    return figure


def class_bars(
    title: str, note: str, shares: Mapping[str, float], whole: float, theme: Theme = LIGHT, most: int = 30
) -> Figure:
    """A bar of each class, best first; of more than `most` classes the best and the worst halves of so many.

    Args:
        shares: 0 to 1 by class.
        whole: where a line stands: the share of all.
    """
    ordered = sorted(shares.items(), key=lambda item: -item[1])
    if len(ordered) > most:
        note = f"the {most // 2} best and the {most // 2} worst of {len(ordered):,} classes; {note}"
        ordered = [*ordered[: most // 2], *ordered[-(most // 2) :]]
    figure, axes = new_figure(theme, 7.2, max(2.4, 0.24 * len(ordered) + 1.4), title, note)
    places, values = np.arange(len(ordered)), np.array([share for _, share in ordered])
    axes.barh(places, values, height=0.72, color=theme.image_to_text, zorder=2)
    axes.axvline(whole, color=theme.text_to_image, linewidth=1.5, zorder=3)
    for place, share in zip(places, values, strict=True):
        axes.annotate(f"{100 * share:.1f}", (share, place), (4, 0), textcoords="offset points", va="center",
                      color=theme.ink, fontsize=8.5, zorder=4,
                      bbox={"facecolor": theme.paper, "edgecolor": "none", "pad": 0.6})  # fmt: skip
    axes.set_yticks(places, [cut(name, 26) for name, _ in ordered])
    axes.tick_params(axis="y", colors=theme.ink)
    axes.set_ylim(len(ordered) - 0.4, -0.6)
    axes.set_xlim(0, min(1.08, 1.15 * max(*values, whole, 0.1)))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(axis="y", visible=False)
    return figure


def _label_endings(axes: Axes, endings: Sequence[tuple[float, float, str]], percent: bool) -> None:
    """Last values `(y, x, colour)` to the right of their curves, pushed apart where they would overlap."""
    low, high = axes.get_ylim()
    lowest = -np.inf
    for y, x, colour in sorted(endings):
        if abs(y) < 1e-3 * (high - low):
            continue  # a learning rate at its end: a number too small to read anything from
        lowest = max(y, lowest + 0.055 * (high - low))
        axes.annotate(
            f"{100 * y:.1f} %" if percent else f"{y:.3g}",
            (x, lowest),
            (6, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=9,
            fontweight="bold",
            annotation_clip=False,
        )


def _smooth(y: np.ndarray) -> np.ndarray:
    """Running mean over a thirtieth of the curve, narrower at its ends, so that the ends stay true."""
    half = max(1, len(y) // 60)
    total = np.concatenate([[0.0], np.cumsum(y)])
    centre = np.arange(len(y))
    reach = np.minimum(half, np.minimum(centre, len(y) - 1 - centre))
    return (total[centre + reach + 1] - total[centre - reach]) / (2 * reach + 1)
