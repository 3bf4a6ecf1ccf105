"""Small panels side by side: a figure over the severity of each corruption, beside its value for clean pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from eval.report.drawing.style import LIGHT, Theme, headline

_COLUMNS, _PANEL_HEIGHT, _HEAD, _FOOT = 3, 1.75, 0.8, 0.4  # inches


def severity_panels(
    title: str,
    note: str,
    panels: Mapping[str, Mapping[str, Sequence[float]]],
    clean: Mapping[str, float],
    severities: Sequence[int],
    theme: Theme = LIGHT,
) -> Figure:
    """A panel for each corruption with the curves of each figure, all on one scale.

    Args:
        panels: corruption -> figure -> shares, 0 to 1, at each of the severities.
        clean: figure -> its share for clean pictures, a dashed line and the curve's point at severity 0.
    """
    lines = -(-len(panels) // _COLUMNS)
    height = _HEAD + lines * _PANEL_HEIGHT + _FOOT
    figure = Figure(figsize=(7.2, height), facecolor=theme.paper)
    figure.set_layout_engine("constrained", rect=(0.01, _FOOT / height, 0.97, 1 - (_HEAD + _FOOT) / height), h_pad=0.08)
    headline(figure, theme, title, note, height)
    grid = figure.subplots(lines, _COLUMNS, sharex=True, sharey=True, squeeze=False)
    colours = dict(zip(clean, (theme.image_to_text, theme.text_to_image, theme.third), strict=False))
    order = np.argsort(severities)
    top = max([*clean.values(), *(max(y) for panel in panels.values() for y in panel.values())])
    for axes, (name, curves) in zip(grid.flat, panels.items(), strict=False):
        axes.set_facecolor(theme.paper)
        axes.set_title(name, fontsize=9.5, color=theme.ink, loc="left", pad=4)
        axes.grid(color=theme.line, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(colors=theme.quiet, labelsize=8.5, length=0, labelbottom=True)
        for side, spine in axes.spines.items():
            spine.set_visible(side == "bottom")
            spine.set_color(theme.line)
        for figure_name, y in curves.items():
            colour = colours[figure_name]
            axes.axhline(clean[figure_name], color=colour, linewidth=1, linestyle=(0, (4, 3)), alpha=0.6)
            places = [0, *np.asarray(severities)[order]]
            axes.plot(places, [clean[figure_name], *np.asarray(y)[order]], color=colour, linewidth=1.8, marker="o",
                      markersize=3.2, label=figure_name)  # fmt: skip
        axes.set_ylim(0, min(1.05, 1.12 * top + 0.02))
        axes.set_xlim(-0.2, max(severities) + 0.2)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower left", bbox_to_anchor=(0.015, 0.0), ncols=len(labels), frameon=False,
                  fontsize=9.5, labelcolor=theme.ink)  # fmt: skip
    return figure
