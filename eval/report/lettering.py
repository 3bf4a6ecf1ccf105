"""Texts of any script in charts: cut to their room, in letters that a font has, all others as escapes."""

from __future__ import annotations

import logging
from functools import lru_cache
from pathlib import Path
from textwrap import wrap

from matplotlib import font_manager, rcParams

from core.fonts import base_font, shown, wide_fonts


def cut(text: str, most: int) -> str:
    """At most so many letters of a text, as they can be drawn here; an ellipsis says that some are left out."""
    words = " ".join(text.split())
    if len(words) > most:
        whole, _, torn = words[: most - 1].rpartition(" ")
        words = (whole if len(torn) < most // 2 else words[: most - 1]).rstrip() + "…"
    return _drawable(words)


def in_lines(text: str, width: int, most_lines: int) -> str:
    """A text in so many lines at most, as they can be drawn here."""
    lines = wrap(" ".join(text.split()), width, max_lines=most_lines, placeholder="…") or [""]
    return "\n".join(map(_drawable, lines))


def _drawable(text: str) -> str:
    """In letters of the fonts that there are; a dollar is a dollar, and no formula begins with it."""
    return shown(text, (base_font(), *_wide_families())).replace("$", r"\$")


@lru_cache
def _wide_families() -> tuple[Path, ...]:
    """Fonts of this machine that matplotlib falls back on from now on, for letters that DejaVu lacks."""
    fonts = wide_fonts()
    if fonts:  # they have one weight, which matplotlib tells at every heading
        logging.getLogger("matplotlib.font_manager").addFilter(lambda said: "font weight" not in said.getMessage())
    for font in fonts:
        font_manager.fontManager.addfont(font)
    names = [font_manager.FontProperties(fname=font).get_name() for font in fonts]
    rcParams["font.family"] = ["DejaVu Sans", *names]
    return fonts
