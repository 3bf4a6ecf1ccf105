"""Which fonts of this machine can show a text, and the text in letters that they have.

DejaVu, which matplotlib carries, shows European scripts on every machine. For others, a font that is installed takes
over letter by letter; what none can show is written as an escape, `\\u4f60`, and never as an empty box.
"""

from __future__ import annotations

import importlib.util
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from itertools import groupby
from pathlib import Path

_FOLDERS = (
    "~/.local/share/fonts", "~/.fonts", "/usr/local/share/fonts", "/usr/share/fonts",
    "~/Library/Fonts", "/Library/Fonts", "/System/Library/Fonts", "C:/Windows/Fonts",
)  # fmt: skip
_WIDE = (
    "NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "NotoSansSC-Regular.ttf", "SourceHanSansSC-Regular.otf",
    "DroidSansFallbackFull.ttf", "wqy-microhei.ttc", "wqy-zenhei.ttc", "PingFang.ttc", "msyh.ttc",
    "NotoSansArabic-Regular.ttf", "NotoSansHebrew-Regular.ttf", "NotoSansDevanagari-Regular.ttf",
    "NotoSansThai-Regular.ttf", "NotoEmoji-Regular.ttf", "NotoEmoji-VariableFont_wght.ttf", "Symbola.ttf",
    "Symbola_hint.ttf", "seguiemj.ttf", "seguisym.ttf", "Arial Unicode.ttf", "ARIALUNI.TTF", "unifont.otf",
    "unifont.ttf",
)  # fmt: skip  # those that come first are asked first
_COLOURED = ("NotoColorEmoji.ttf",)  # pictures of one size in place of outlines: PIL draws them, matplotlib cannot
_SHAPED = ("ARABIC", "SYRIAC", "HEBREW", "THAANA", "NKO", "DEVANAGARI", "BENGALI", "TAMIL", "TELUGU", "THAI", "KHMER")


def base_font(bold: bool = False) -> Path:
    """DejaVu Sans: the same letters on every machine. Found, not imported: matplotlib takes a third of a second."""
    spec = importlib.util.find_spec("matplotlib")
    assert spec is not None and spec.submodule_search_locations
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return Path(spec.submodule_search_locations[0]) / "mpl-data/fonts/ttf" / name


@lru_cache
def wide_fonts(coloured: bool = False) -> tuple[Path, ...]:
    """Installed fonts for what DejaVu lacks, the better ones first.

    Args:
        coloured: fonts of coloured pictures too.
    """
    wanted = (*_COLOURED, *_WIDE) if coloured else _WIDE
    found: dict[str, Path] = {}
    for folder in _FOLDERS:
        for path in sorted(Path(folder).expanduser().rglob("*")):
            if path.name in wanted:
                found.setdefault(path.name, path)
    return tuple(found[name] for name in wanted if name in found)


def is_coloured(font: Path) -> bool:
    """Whether its letters are pictures of one size."""
    return font.name in _COLOURED


def needs_shaping(text: str) -> bool:
    """Whether letters join, stack or run from right to left, so that one after the other they would be misread."""
    return any(unicodedata.name(letter, "").startswith(_SHAPED) for letter in text)


def shown(text: str, fonts: Iterable[Path], can_shape: bool = True) -> str:
    """`text` in letters that one of the fonts has; others as escapes.

    Args:
        can_shape: whether what draws it joins letters; without, scripts that need it are written as escapes too.
    """
    fonts = tuple(fonts)

    def letter_shown(letter: str) -> str:
        if _is_invisible(letter):
            return ""
        if (can_shape or not needs_shaping(letter)) and any(ord(letter) in _coverage(font) for font in fonts):
            return letter
        return letter.encode("ascii", "backslashreplace").decode() if ord(letter) > 126 else repr(letter)[1:-1]

    return "".join(map(letter_shown, text))


def runs(text: str, fonts: tuple[Path, ...]) -> list[tuple[Path, str]]:
    """`text`, as `shown` gives it, cut where another font takes over; the first font that has a letter draws it."""

    def font_of(letter: str) -> Path:
        return next((font for font in fonts if ord(letter) in _coverage(font)), fonts[0])

    return [(font, "".join(letters)) for font, letters in groupby(text, font_of)]


@lru_cache
def _coverage(font: Path) -> frozenset[int]:
    from fontTools.ttLib import TTFont

    with TTFont(font, fontNumber=0, lazy=True) as opened:
        return frozenset(opened.getBestCmap() or ())


def _is_invisible(letter: str) -> bool:
    """Joiners, selectors of a variant, marks of direction: they only say how others are to be drawn."""
    return unicodedata.category(letter) == "Cf" or "VARIATION SELECTOR" in unicodedata.name(letter, "")
