"""Texts of any script in charts: cut to their room, in letters that a font has, all others as escapes."""

from __future__ import annotations

from textwrap import wrap

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
    return shown(text, (base_font(), *wide_fonts())).replace("$", r"\$")


def thousands(value: float) -> str:
    """`12k`, `3.4M`."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
