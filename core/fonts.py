"""Which fonts of this machine can show a text, and the text in letters that they have.

DejaVu, which matplotlib carries, shows European scripts on every machine. For others, a font that is installed takes
over letter by letter; what none can show is written as an escape, `\\u4f60`, and never as an empty box. Emoji that
several letters spell (a family, a flag, a tone of skin) are one picture of one font, or the first emoji of them alone.
"""

from __future__ import annotations

import importlib.util
import re
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
COLOURED_SIZE = 109  # pixels, the only one that they have
_EMOJI = "[\u203c\u2049\u2122\u2139\u2190-\u2bff\u3030\u303d\u3297\u3299\U0001f000-\U0001faff]"
_VARIANT = "[\ufe0f\u20e3\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f]*"  # selectors, tones of skin, tags
CLUSTER = (  # of letters that are one (Unicode Technical Standard 51, 1.4.9), or any other letter
    f"[\U0001f1e6-\U0001f1ff]{{2}}|[0-9#*]\ufe0f?\u20e3|{_EMOJI}{_VARIANT}(?:\u200d{_EMOJI}{_VARIANT})*|."
)
_CLUSTERS = re.compile(CLUSTER, re.DOTALL)
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
    joined = any(len(cluster) > 1 for cluster in _CLUSTERS.findall(text))
    return joined or any(unicodedata.name(letter, "").startswith(_SHAPED) for letter in text)


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

    def cluster_shown(cluster: str) -> str:
        if len(cluster) == 1:
            return letter_shown(cluster)
        if can_shape and any(_is_one_picture(font, cluster) for font in fonts):
            return cluster
        if _is_flag(cluster):  # its letters alone would be read as text
            return cluster.encode("ascii", "backslashreplace").decode()
        return letter_shown(cluster[0])

    return "".join(map(cluster_shown, _CLUSTERS.findall(text)))


def runs(text: str, fonts: tuple[Path, ...]) -> list[tuple[Path, str]]:
    """`text`, as `shown` gives it, cut where another font takes over; the first font that has a letter draws it."""

    def font_of(cluster: str) -> Path:
        if len(cluster) > 1:
            return next((font for font in fonts if _is_one_picture(font, cluster)), fonts[0])
        return next((font for font in fonts if ord(cluster) in _coverage(font)), fonts[0])

    return [(font, "".join(letters)) for font, letters in groupby(_CLUSTERS.findall(text), font_of)]


def _is_flag(cluster: str) -> bool:
    return all("\U0001f1e6" <= letter <= "\U0001f1ff" for letter in cluster)


@lru_cache
def _is_one_picture(font: Path, cluster: str) -> bool:
    """Whether a font draws the letters as one: its pictures are all of one width, so that pieces would be wider."""
    if not is_coloured(font) or ord(cluster[0]) not in _coverage(font):
        return False
    from PIL import ImageFont

    opened = ImageFont.truetype(str(font), COLOURED_SIZE, layout_engine=ImageFont.Layout.RAQM)
    return opened.getlength(cluster) <= opened.getlength(cluster[0])


@lru_cache
def _coverage(font: Path) -> frozenset[int]:
    from fontTools.ttLib import TTFont

    with TTFont(font, fontNumber=0, lazy=True) as opened:
        return frozenset(opened.getBestCmap() or ())


def _is_invisible(letter: str) -> bool:
    """Joiners, selectors of a variant, marks of direction: they only say how others are to be drawn."""
    return unicodedata.category(letter) == "Cf" or "VARIATION SELECTOR" in unicodedata.name(letter, "")
