"""Two kinds of features in one space: cosines of pairs and of others, and both kinds on a plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from eval.report.drawing.style import LIGHT, Theme, legend, new_figure


def cosine_histogram(cosines: Mapping[str, Sequence[float]], theme: Theme = LIGHT) -> Figure:
    """`edges` `(b + 1,)` and counts `(b,)` of the cosines of `pairs` and of `others`; as shares of each."""
    note = "pictures with their own captions, and with captions of others drawn at random"
    figure, axes = new_figure(theme, 7.2, 4.2, "Cosines of pairs and of others", note)
    edges = np.array(cosines["edges"])
    for kind, colour in (("others", theme.text_to_image), ("pairs", theme.image_to_text)):
        counts = np.array(cosines[kind], dtype=float)
        shares = counts / max(counts.sum(), 1)
        axes.stairs(shares, edges, fill=True, color=colour, alpha=0.35, zorder=2)
        axes.stairs(shares, edges, color=colour, linewidth=1.6, label=f"{kind} ({int(counts.sum()):,})", zorder=3)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_ylim(bottom=0)
    axes.set(xlabel="cosine", ylabel="share")
    legend(axes, theme)
    return figure


def two_kinds(places: Mapping[str, Any], theme: Theme = LIGHT) -> Figure:
    """`images` and `texts` `(n, 2)` on the first two principal axes, and the `shares` of variance that these hold."""
    shares = [f"{100 * share:.0f} %" for share in places["shares"]]
    note = f"the two principal axes of both together, which hold {shares[0]} and {shares[1]} of their variance"
    figure, axes = new_figure(theme, 7.2, 4.8, "Pictures and captions", note)
    kinds = (("texts", "captions", theme.text_to_image, "^"), ("images", "pictures", theme.image_to_text, "o"))
    for kind, name, colour, marker in kinds:
        x, y = np.array(places[kind]).T
        axes.scatter(x, y, s=13, marker=marker, color=colour, alpha=0.5, linewidths=0, zorder=2)
        axes.scatter(
            x.mean(), y.mean(), s=130, marker=marker, color=colour, edgecolors=theme.paper, linewidths=1.5, zorder=4,
            label=f"{name} ({len(x):,}), large: their middle",
        )  # fmt: skip
    axes.set_aspect("equal", adjustable="datalim")
    legend(axes, theme)
    return figure
