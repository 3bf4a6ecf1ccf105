"""Estimates with their intervals, a row each: what lies beside the dashed line by more than chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from eval.metrics import Interval
from eval.report.drawing.style import LIGHT, Theme, new_figure
from eval.report.lettering import cut


@dataclass(frozen=True)
class IntervalRow:
    """One row: a dot at the estimate, whiskers to both ends; `is_strong` rows are those to look at first."""

    name: str
    interval: Interval
    is_strong: bool = False


def interval_rows(
    title: str,
    note: str,
    rows: Sequence[IntervalRow],
    theme: Theme = LIGHT,
    *,
    line_at: float | None = None,
    percent: bool = True,
    signed: bool = False,
) -> Figure:
    """Rows from top to bottom, each with its estimate in figures at the right.

    Args:
        line_at: where a dashed line stands: what the rows are compared with.
        percent: values are shares from 0 to 1, and shown in percent.
        signed: values are differences, and carry their sign.
    """

    def spoken(value: float) -> str:
        return format(100 * value if percent else value, ("+" if signed else "") + (".1f" if percent else ".3g"))

    figure, axes = new_figure(theme, 7.2, 1.5 + 0.34 * len(rows), title, note)
    for place, row in enumerate(rows):
        colour, own = theme.text_to_image if row.is_strong else theme.image_to_text, row.interval
        axes.plot([own.low, own.high], [place, place], color=colour, linewidth=2, solid_capstyle="round", zorder=3)
        axes.plot([own.estimate], [place], "o", color=colour, markersize=7, zorder=4)
        axes.annotate(
            spoken(own.estimate), (1, place), (6, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
            va="center", color=theme.ink, fontsize=9, fontweight="bold" if row.is_strong else "normal",
        )  # fmt: skip
    if line_at is not None:
        axes.axvline(line_at, color=theme.quiet, linewidth=1.2, linestyle=(0, (4, 3)), zorder=2)
    axes.set_yticks(range(len(rows)), [cut(row.name, 44) for row in rows], fontsize=9)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.margins(x=0.06)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: spoken(value)))
    axes.set_xlabel("points" if percent and signed else "%" if percent else "")
    axes.grid(axis="y", visible=False)
    return figure
