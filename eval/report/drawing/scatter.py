"""Maps of points: each class by its colour and its shape, with a legend beside them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from eval.report.drawing.style import DARK, LIGHT, Theme, new_figure
from eval.report.lettering import cut
from eval.report.marks import ON_DARK, ON_LIGHT, SHAPES, Group

_MARKERS = dict(zip(SHAPES, ("o", "^", "s", "D", "X"), strict=True))


def scatter_map(points: np.ndarray, groups: Sequence[Group], title: str, note: str, theme: Theme = LIGHT) -> Figure:
    """Points `(N, 2)` from 0 to 1, both axes alike; one group needs no legend."""
    figure, axes = new_figure(theme, 6.6, 5.0, title, note)
    palette = ON_DARK if theme == DARK else ON_LIGHT
    area = float(np.clip(16_000 / max(len(points), 1), 5, 34))
    for group in reversed(groups):  # the commonest on top, and the quiet ones below all
        x, y = points[list(group.rows)].T
        colour = theme.quiet if group.colour is None else palette[group.colour]
        marker = "." if group.shape is None else _MARKERS[SHAPES[group.shape]]
        axes.scatter(x, y, s=area, c=colour, marker=marker, linewidths=0.3, edgecolors=theme.paper, zorder=2,
                     label=f"{cut(group.name, 24)}  {len(group.rows):,}")  # fmt: skip
    axes.set(xticks=[], yticks=[], xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
    for spine in axes.spines.values():
        spine.set(visible=True, color=theme.line)
    if len(groups) > 1:
        handles, names = axes.get_legend_handles_labels()
        axes.legend(handles[::-1], names[::-1], frameon=False, fontsize=8.5, labelcolor=theme.ink, loc="center left",
                    bbox_to_anchor=(1.0, 0.5), handletextpad=0.3, markerscale=(30 / area) ** 0.5)  # fmt: skip
    return figure
