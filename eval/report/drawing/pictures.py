"""Sheets of pictures: what queries found, and the likeliest classes of each picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from eval.report.drawing.style import LIGHT, Theme, headline
from eval.report.lettering import cut


@dataclass(frozen=True)
class PictureRow:
    """A query and the pictures it found; `is_right` is None where nobody knows."""

    title: str
    pictures: Sequence[np.ndarray]  # (S, S, 3) uint8
    notes: Sequence[str]
    is_right: Sequence[bool | None]


def picture_rows(title: str, note: str, rows: Sequence[PictureRow], theme: Theme = LIGHT) -> Figure:
    """A sheet: each query above the pictures it found; green and a tick is right, red and a cross is wrong."""
    columns = max(len(row.pictures) for row in rows)
    head, cell = 0.75, 2.2
    height = head + len(rows) * cell
    figure = Figure(figsize=(1.66 * columns + 0.3, height), facecolor=theme.paper)
    headline(figure, theme, title, note, height)
    for r, row in enumerate(rows):
        top = 1 - (head + r * cell) / height
        heading = cut(row.title, int(15 * columns))
        figure.text(0.15 / figure.get_figwidth(), top - 0.06 / height, heading, color=theme.ink, fontsize=10.5,
                    fontweight="bold", va="top")  # fmt: skip
        for c, (picture, text, is_right) in enumerate(zip(row.pictures, row.notes, row.is_right, strict=True)):
            left = (0.15 + 1.66 * c) / figure.get_figwidth()
            axes = figure.add_axes((left, top - 1.84 / height, 1.52 / figure.get_figwidth(), 1.52 / height))
            axes.imshow(picture)
            axes.set(xticks=[], yticks=[])
            colour = theme.line if is_right is None else theme.right if is_right else theme.wrong
            for spine in axes.spines.values():
                spine.set(color=colour, linewidth=1 if is_right is None else 3)
            mark = "" if is_right is None else "✓ " if is_right else "✗ "
            axes.set_xlabel(
                mark + cut(text, 22), fontsize=8, labelpad=4, color=theme.quiet if is_right is None else colour
            )
    return figure


def class_bars(
    pictures: Sequence[np.ndarray],
    probabilities: np.ndarray,
    classes: Sequence[str],
    right: Sequence[int | None],
    theme: Theme = LIGHT,
) -> Figure:
    """Pictures, each above the bars of its likeliest classes; where the right class is known, it is named above the
    picture, in green where it is the likeliest, and its bar is green."""
    columns, shown = 4, min(4, len(classes))
    lines = -(-len(pictures) // columns)
    head, cell, width = 0.95, 2.2 + 0.24 * shown, 2.1
    height = head + lines * cell
    figure = Figure(figsize=(width * columns + 0.2, height), facecolor=theme.paper)
    headline(figure, theme, "Zero-shot classes", f"of {len(classes)}: {cut(', '.join(classes), 80)}", height)
    for i, (picture, row, own) in enumerate(zip(pictures, probabilities, right, strict=True)):
        left = (0.2 + width * (i % columns)) / figure.get_figwidth()
        top = 1 - (head + (i // columns) * cell) / height
        span = 1.7 / figure.get_figwidth()
        axes = figure.add_axes((left, top - 1.72 / height, span, 1.7 / height))
        axes.imshow(picture)
        axes.set_axis_off()
        if own is not None:
            is_right = int(np.argmax(row)) == own
            mark, colour = ("✓", theme.right) if is_right else ("✗", theme.wrong)
            axes.set_title(f"{mark} {cut(classes[own], 20)}", fontsize=9, color=colour, loc="left", pad=3)
        bars = figure.add_axes((left, top - (1.76 + 0.22 * shown) / height, span, 0.22 * shown / height))
        best = np.argsort(-row, kind="stable")[:shown]
        for place, k in enumerate(best):
            colour = theme.right if own == k else theme.image_to_text
            bars.barh(place, 1, height=0.8, color=theme.line)
            bars.barh(place, row[k], height=0.8, color=colour, alpha=0.5)
            bars.text(0.02, place, cut(classes[k], 18), va="center", fontsize=7.5, color=theme.ink)
            bars.text(0.98, place, f"{100 * row[k]:.0f} %", va="center", ha="right", fontsize=7.5, color=theme.ink)
        bars.set(xlim=(0, 1), ylim=(shown - 0.5, -0.5))
        bars.set_axis_off()
    return figure
