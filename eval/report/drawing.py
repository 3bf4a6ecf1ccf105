"""Charts and picture sheets in one style, for light and dark pages; data in, matplotlib figures out."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib import font_manager, rcParams
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from core.fonts import wide_fonts
from core.storage import publish_bytes
from eval.report.lettering import cut, in_lines, thousands


@dataclass(frozen=True)
class Theme:
    """Colours of a chart; the first two series are told apart by everyone, colour-blind readers included."""

    paper: str
    ink: str
    quiet: str  # axis labels, notes
    line: str  # grid and frames
    image_to_text: str
    text_to_image: str
    third: str
    right: str
    wrong: str
    ramp: tuple[str, ...]  # low to high, of matrices


LIGHT = Theme(
    paper="#ffffff",
    ink="#15202b",
    quiet="#5b6b7b",
    line="#e3e8ee",
    image_to_text="#2f5fd0",
    text_to_image="#e0762f",
    third="#1f9d8b",
    right="#1a9c4b",
    wrong="#d64545",
    ramp=("#f4f7fc", "#a9c4ee", "#3f6fd8", "#12246b"),
)
DARK = Theme(
    paper="#151b23",
    ink="#e8edf3",
    quiet="#93a1b0",
    line="#2b3541",
    image_to_text="#7da2ff",
    text_to_image="#f59a5b",
    third="#43c9b4",
    right="#3fcf78",
    wrong="#f06b6b",
    ramp=("#18212c", "#274a8f", "#6f9bff", "#eaf1ff"),
)
_DPI = 160


@dataclass(frozen=True)
class Series:
    """One curve: x increases."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class PictureRow:
    """A query and the pictures it found; `is_right` is None where nobody knows."""

    title: str
    pictures: Sequence[np.ndarray]  # (S, S, 3) uint8
    notes: Sequence[str]
    is_right: Sequence[bool | None]


def similarity_matrix(
    similarity: np.ndarray, captions: Sequence[str], pictures: Sequence[np.ndarray], theme: Theme = LIGHT
) -> Figure:
    """`(n, n)` cosines of a sample: row = caption, column = image; a trained encoder shows the diagonal."""
    n = len(similarity)
    cell, words, head = 0.62, 3.4, 0.95
    width, height = words + cell * n + 1.1, head + cell * n + 0.75
    figure = Figure(figsize=(width, height), facecolor=theme.paper)
    _headline(figure, theme, "Similarity of captions and images", _diagonal_note(similarity), height)
    axes = figure.add_axes((words / width, 0.15 / height, cell * n / width, cell * n / height))
    drawn = axes.imshow(similarity, cmap=_ramp(theme), interpolation="nearest", aspect="auto")
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


def recall_bars(
    recalls: Mapping[str, Mapping[int, float]],
    intervals: Mapping[str, Mapping[str, Mapping[str, float]]],
    note: str,
    theme: Theme = LIGHT,
) -> Figure:
    """Recall@K of both directions with their intervals; `recalls[direction][k]` is 0 to 1."""
    figure, axes = _figure(theme, 7.2, 4.2, "Recall@K", note)
    for offset, direction in ((-0.2, "image_to_text"), (0.2, "text_to_image")):
        ks, colour = list(recalls[direction]), _colour(direction, theme)
        x, y = np.arange(len(ks)) + offset, np.array(list(recalls[direction].values()))
        axes.bar(x, y, width=0.36, color=colour, label=_spoken(direction), zorder=2)
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
    _legend(axes, theme)
    return figure


def rank_histogram(histograms: Mapping[str, Sequence[int]], edges: Sequence[int], theme: Theme = LIGHT) -> Figure:
    """Where the right answer stood: share of queries per band of ranks, bands growing as powers do."""
    figure, axes = _figure(theme, 7.2, 4.2, "Rank of the right answer", "share of queries; 1 is best")
    for offset, (direction, counts) in zip((-0.2, 0.2), histograms.items(), strict=True):
        shares = np.array(counts) / max(sum(counts), 1)
        axes.bar(np.arange(len(counts)) + offset, shares, width=0.38, color=_colour(direction, theme),
                 label=_spoken(direction), zorder=2)  # fmt: skip
    names = [f"{low}" if high - low == 1 else f"{low}–{high - 1}" for low, high in pairwise(edges)]
    axes.set_xticks(range(len(names)), names)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(axis="x", visible=False)
    axes.set_xlabel("rank")
    _legend(axes, theme)
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
    figure, axes = _figure(theme, 7.2, 4.2, title, note)
    colours = [theme.image_to_text, theme.text_to_image, theme.third, theme.quiet]
    endings = []
    for number, one in enumerate(series):
        colour, y = colours[number % len(colours)], np.asarray(one.y, dtype=float)
        is_marked = one.name in marked or len(y) < 3
        if len(y) > 60 and not is_marked:  # a noisy line: the raw one pale behind its running mean
            axes.plot(one.x, y, color=colour, linewidth=0.8, alpha=0.28, zorder=2)
            y = _smooth(y)
        marker = "o" if is_marked else None
        axes.plot(one.x, y, color=colour, linewidth=2, label=one.name, zorder=3, marker=marker, markersize=4.5)
        endings.append((float(y[-1]), one.x[-1], colour))
    axes.set_xlabel("samples seen")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: thousands(value)))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    if percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.set_ylim(bottom=0)
    _label_endings(axes, endings, percent)
    _legend(axes, theme, is_single=len(series) == 1)
    return figure


def confusion_matrix(counts: np.ndarray, classes: Sequence[str], theme: Theme = LIGHT) -> Figure:
    """`(K, K)` counts: row = right class, column = predicted class; each row is coloured by its shares."""
    num_classes = len(classes)
    side = min(12.0, max(4.5, 0.33 * num_classes + 1.7))
    right = np.trace(counts) / max(counts.sum(), 1)
    note = f"{100 * right:.1f} % right; row: right, column: predicted"
    classes = [cut(name, 24) for name in classes]
    figure, axes = _figure(theme, side + 0.6, side, "Zero-shot confusion", note)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap=_ramp(theme), vmin=0, vmax=1)
    axes.set_xticks(range(num_classes), classes, rotation=90, fontsize=8)
    axes.set_yticks(range(num_classes), classes, fontsize=8)
    axes.tick_params(length=0)
    axes.grid(False)
    light_text, dark_text = (theme.paper, theme.ink)
    for row, column in zip(*np.nonzero(counts), strict=True) if num_classes <= 25 else ():
        colour = light_text if shares[row, column] > 0.55 else dark_text
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=7.5, color=colour)
    return figure


def picture_rows(title: str, note: str, rows: Sequence[PictureRow], theme: Theme = LIGHT) -> Figure:
    """A sheet: each query above the pictures it found; green and a tick is right, red and a cross is wrong."""
    columns = max(len(row.pictures) for row in rows)
    head, cell = 0.75, 2.2
    height = head + len(rows) * cell
    figure = Figure(figsize=(1.66 * columns + 0.3, height), facecolor=theme.paper)
    _headline(figure, theme, title, note, height)
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
    _headline(figure, theme, "Zero-shot classes", f"of {len(classes)}: {cut(', '.join(classes), 80)}", height)
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


def png_bytes(figure: Figure) -> bytes:
    """The figure as PNG; equal figures give equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, facecolor=figure.get_facecolor(), metadata={"Software": None})
    return buffer.getvalue()


def save_png(figure: Figure, path: Path) -> None:
    """Publish a chart as a PNG file."""
    publish_bytes(png_bytes(figure), path)


def save_jpeg(figure: Figure, path: Path) -> None:
    """Publish a sheet of pictures as a JPEG file: a tenth of the PNG's bytes."""
    buffer = io.BytesIO()
    options = {"quality": 88, "optimize": True}
    figure.savefig(buffer, format="jpeg", dpi=_DPI, facecolor=figure.get_facecolor(), pil_kwargs=options)
    publish_bytes(buffer.getvalue(), path)


def _figure(theme: Theme, width: float, height: float, title: str, note: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), facecolor=theme.paper)
    figure.set_layout_engine("constrained", rect=(0.01, 0.01, 0.97, 1 - 0.72 / height))
    _headline(figure, theme, title, note, height)
    axes = figure.add_subplot(facecolor=theme.paper)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(theme.line)
    axes.grid(color=theme.line, linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.quiet, labelsize=9, length=0)
    axes.xaxis.label.set(color=theme.quiet, fontsize=9.5)
    axes.yaxis.label.set(color=theme.quiet, fontsize=9.5)
    return figure, axes


@lru_cache
def _fall_back_on_wide_fonts() -> None:
    """For letters that DejaVu lacks; once, before any text is made."""
    fonts = wide_fonts()
    for font in fonts:
        font_manager.fontManager.addfont(font)
    rcParams["font.family"] = ["DejaVu Sans", *(font_manager.FontProperties(fname=f).get_name() for f in fonts)]
    # They have one weight, which matplotlib tells at every heading.
    logging.getLogger("matplotlib.font_manager").addFilter(lambda said: "font weight" not in said.getMessage())


def _headline(figure: Figure, theme: Theme, title: str, note: str, height: float) -> None:
    _fall_back_on_wide_fonts()
    left = 0.15 / figure.get_figwidth()
    figure.text(left, 1 - 0.12 / height, title, color=theme.ink, fontsize=14, fontweight="bold", va="top")
    room = int(figure.get_figwidth() * 13.5)
    figure.text(left, 1 - 0.42 / height, cut(note, room), color=theme.quiet, fontsize=9.5, va="top")


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


def _legend(axes: Axes, theme: Theme, is_single: bool = False) -> None:
    if not is_single:
        axes.legend(frameon=False, fontsize=9.5, labelcolor=theme.ink, loc="best")


def _ramp(theme: Theme) -> LinearSegmentedColormap:
    return LinearSegmentedColormap.from_list("ramp", theme.ramp)


def _colour(direction: str, theme: Theme) -> str:
    return theme.image_to_text if direction == "image_to_text" else theme.text_to_image


def _spoken(direction: str) -> str:
    return direction.replace("_", " ")


def _diagonal_note(similarity: np.ndarray) -> str:
    own = float(np.mean(np.diag(similarity)))
    others = float(np.mean(similarity[~np.eye(len(similarity), dtype=bool)])) if len(similarity) > 1 else 0.0
    return f"cosine of {len(similarity)} images drawn at random: own caption {own:.2f}, others {others:.2f} on average"


def _smooth(y: np.ndarray) -> np.ndarray:
    """Running mean over a thirtieth of the curve, narrower at its ends, so that the ends stay true."""
    half = max(1, len(y) // 60)
    total = np.concatenate([[0.0], np.cumsum(y)])
    centre = np.arange(len(y))
    reach = np.minimum(half, np.minimum(centre, len(y) - 1 - centre))
    return (total[centre + reach + 1] - total[centre - reach]) / (2 * reach + 1)
