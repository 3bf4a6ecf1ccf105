"""Matrices: how near captions and images are, and which class is taken for which."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from eval.report.drawing.style import LIGHT, Theme, headline, new_figure, ramp
from eval.report.lettering import cut, in_lines


def similarity_matrix(
    similarity: np.ndarray, captions: Sequence[str], pictures: Sequence[np.ndarray], theme: Theme = LIGHT
) -> Figure:
    """`(n, n)` cosines of a sample: row = caption, column = image; a trained encoder shows the diagonal."""
    n = len(similarity)
    cell, words, head = 0.62, 3.4, 0.95
    width, height = words + cell * n + 1.1, head + cell * n + 0.75
    figure = Figure(figsize=(width, height), facecolor=theme.paper)
    headline(figure, theme, "Similarity of captions and images", _diagonal_note(similarity), height)
    axes = figure.add_axes((words / width, 0.15 / height, cell * n / width, cell * n / height))
    drawn = axes.imshow(similarity, cmap=ramp(theme), interpolation="nearest", aspect="auto")
    axes.set_yticks(range(n), [in_lines(text, 42, 2) for text in captions], fontsize=9)
    axes.set_xticks([])
    axes.tick_params(colors=theme.ink, length=0)
    middle = (float(similarity.min()) + float(similarity.max())) / 2
    for row, values in enumerate(similarity):
        for column, value in enumerate(values):
            colour = theme.paper if value > middle else theme.ink
            weight = "bold" if row == column else "normal"
            axes.text(
                column,
                row,
                f"{round(float(value), 2) + 0:.2f}",
                ha="center",
                va="center",
                fontsize=8,
                color=colour,
                fontweight=weight,
            )
    for column, picture in enumerate(pictures):
        left, bottom = (words + cell * (column + 0.04)) / width, (0.2 + cell * n) / height
        thumbnail = figure.add_axes((left, bottom, 0.92 * cell / width, 0.92 * cell / height))
        thumbnail.imshow(picture)
        thumbnail.set_axis_off()
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = figure.colorbar(drawn, cax=figure.add_axes((1 - 0.9 / width, 0.15 / height, 0.16 / width, cell * n / height)))
    bar.ax.tick_params(colors=theme.quiet, labelsize=8, length=0)
    bar.outline.set_visible(False)
    return figure


def confusion_matrix(counts: np.ndarray, classes: Sequence[str], theme: Theme = LIGHT) -> Figure:
    """`(K, K)` counts: row = right class, column = predicted class; each row is coloured by its shares."""
    num_classes = len(classes)
    side = min(12.0, max(4.5, 0.33 * num_classes + 1.7))
    right = np.trace(counts) / max(counts.sum(), 1)
    note = f"{100 * right:.1f} % right; row: right, column: predicted"
    classes = [cut(name, 24) for name in classes]
    figure, axes = new_figure(theme, side + 0.6, side, "Zero-shot confusion", note)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap=ramp(theme), vmin=0, vmax=1)
    axes.set_xticks(range(num_classes), classes, rotation=90, fontsize=8)
    axes.set_yticks(range(num_classes), classes, fontsize=8)
    axes.tick_params(length=0)
    axes.grid(False)
    light_text, dark_text = (theme.paper, theme.ink)
    for row, column in zip(*np.nonzero(counts), strict=True) if num_classes <= 25 else ():
        colour = light_text if shares[row, column] > 0.55 else dark_text
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=7.5, color=colour)
    return figure


def _diagonal_note(similarity: np.ndarray) -> str:
    own = float(np.mean(np.diag(similarity)))
    others = float(np.mean(similarity[~np.eye(len(similarity), dtype=bool)])) if len(similarity) > 1 else 0.0
    return f"cosine of {len(similarity)} images drawn at random: own caption {own:.2f}, others {others:.2f} on average"
