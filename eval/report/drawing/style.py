"""The one style of all charts: colours of light and dark pages, headlines, and how a figure becomes a file."""

from __future__ import annotations

import io
import logging
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from matplotlib import font_manager, rcParams
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from core.fonts import wide_fonts
from core.storage import publish_bytes
from eval.report.lettering import cut


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


def new_figure(theme: Theme, width: float, height: float, title: str, note: str) -> tuple[Figure, Axes]:
    """A figure in inches with a headline, and its axes: a grid, one line below."""
    figure = Figure(figsize=(width, height), facecolor=theme.paper)
    figure.set_layout_engine("constrained", rect=(0.01, 0.01, 0.97, 1 - 0.72 / height))
    headline(figure, theme, title, note, height)
    axes = figure.add_subplot(facecolor=theme.paper)
    dress(axes, theme)
    return figure, axes


def dress(axes: Axes, theme: Theme) -> None:
    """Axes as all charts have them: a grid, one line below, quiet letters."""
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(theme.line)
    axes.grid(color=theme.line, linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.quiet, labelsize=9, length=0)
    axes.xaxis.label.set(color=theme.quiet, fontsize=9.5)
    axes.yaxis.label.set(color=theme.quiet, fontsize=9.5)


def headline(figure: Figure, theme: Theme, title: str, note: str, height: float) -> None:
    """Title and note at the upper left of a figure that is `height` inches high."""
    _fall_back_on_wide_fonts()
    left = 0.15 / figure.get_figwidth()
    figure.text(left, 1 - 0.12 / height, title, color=theme.ink, fontsize=14, fontweight="bold", va="top")
    room = int(figure.get_figwidth() * 13.5)
    figure.text(left, 1 - 0.42 / height, cut(note, room), color=theme.quiet, fontsize=9.5, va="top")


def legend(axes: Axes, theme: Theme, is_single: bool = False) -> None:
    """Names of the series, where there are several."""
    if not is_single:
        axes.legend(frameon=False, fontsize=9.5, labelcolor=theme.ink, loc="best")


def ramp(theme: Theme) -> LinearSegmentedColormap:
    """Colours of a matrix, low to high."""
    return LinearSegmentedColormap.from_list("ramp", theme.ramp)


def direction_colour(direction: str, theme: Theme) -> str:
    """Of a direction of retrieval."""
    return theme.image_to_text if direction == "image_to_text" else theme.text_to_image


def spoken(direction: str) -> str:
    """A name in words."""
    return direction.replace("_", " ")


def png_bytes(figure: Figure, dpi: int = _DPI) -> bytes:
    """The figure as PNG; equal figures give equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor=figure.get_facecolor(), metadata={"Software": None})
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


@lru_cache
def _fall_back_on_wide_fonts() -> None:
    """For letters that DejaVu lacks; once, before any text is made."""
    fonts = wide_fonts()
    for font in fonts:
        font_manager.fontManager.addfont(font)
    rcParams["font.family"] = ["DejaVu Sans", *(font_manager.FontProperties(fname=f).get_name() for f in fonts)]
    # They have one weight, which matplotlib tells at every heading.
    logging.getLogger("matplotlib.font_manager").addFilter(lambda said: "font weight" not in said.getMessage())
