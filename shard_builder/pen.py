"""Writes text of any script into pictures: font by font, joined letters joined, and what no font has as an escape."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, features

from core.fonts import CLUSTER, COLOURED_SIZE, base_font, is_coloured, needs_shaping, runs, shown, wide_fonts

Colour = tuple[int, int, int]
_UNIT = re.compile(rf"\\(?:x[0-9a-f]{{2}}|u[0-9a-f]{{4}}|U[0-9a-f]{{8}})|{CLUSTER}", re.DOTALL)  # never torn apart


@dataclass(frozen=True)
class Pen:
    """Letters of one size in pixels."""

    size: int
    bold: bool = False

    def shown(self, text: str) -> str:
        """`text` in letters that can be drawn here; the others as escapes such as `\\u4f60`."""
        return shown(text, self._fonts, can_shape=bool(features.check("raqm")))

    def length(self, text: str) -> float:
        """Width in pixels of a text as `shown` gives it."""
        return sum(_font(font, self.size, letters).length for font, letters in runs(text, self._fonts))

    def write(self, sheet: Image.Image, corner: tuple[int, int], text: str, colour: Colour) -> None:
        """Draw a text, as `shown` gives it, whose upper left corner lies there."""
        x, ascent = float(corner[0]), _font(base_font(self.bold), self.size, "").ascent
        for font, letters in runs(text, self._fonts):
            run = _font(font, self.size, letters)
            run.draw(sheet, (x, corner[1] + ascent - run.ascent), colour)  # on one line, whatever the font
            x += run.length

    def clipped(self, text: str, width: int) -> str:
        """As much of `text` as fits; it ends with an ellipsis where something is left over."""
        if self.length(text) <= width:
            return text
        letters = _UNIT.findall(text)
        while letters and self.length("".join(letters) + "…") > width:
            letters.pop()
        return "".join(letters).rstrip() + "…"

    def wrapped(self, text: str, width: int, most_lines: int) -> list[str]:
        """`text` in lines that fit; the last one ends with an ellipsis where words are left over."""
        words, lines = self.shown(" ".join(text.split())).split(" "), [""]
        while words and len(lines) <= most_lines:
            longer = f"{lines[-1]} {words[0]}".strip()
            if self.length(longer) <= width:
                lines[-1] = longer
                words.pop(0)
            elif lines[-1]:
                lines.append("")
            else:  # a word wider than the line, or a language without spaces
                letters = _UNIT.findall(longer)
                fits = 1
                while fits < len(letters) and self.length("".join(letters[: fits + 1])) <= width:
                    fits += 1
                lines[-1], words[0] = "".join(letters[:fits]), "".join(letters[fits:])
                lines.append("")
        if len(lines) > most_lines or words:
            lines = lines[:most_lines]
            lines[-1] = self.clipped(lines[-1] + "…", width)
        return lines

    @property
    def _fonts(self) -> tuple[Path, ...]:
        return (base_font(self.bold), *wide_fonts(coloured=True))


@dataclass(frozen=True)
class _Run:
    """Letters of one font."""

    letters: str
    font: ImageFont.FreeTypeFont
    scale: float  # of what the font draws, to the size that is wanted

    @property
    def length(self) -> float:
        return self.font.getlength(self.letters) * self.scale

    @property
    def ascent(self) -> int:
        """Pixels above the line that letters stand on."""
        return round(self.font.getmetrics()[0] * self.scale)

    def draw(self, sheet: Image.Image, corner: tuple[float, int], colour: Colour) -> None:
        if self.scale == 1:
            ImageDraw.Draw(sheet).text(corner, self.letters, colour, self.font)
            return
        size = (round(self.font.getlength(self.letters)) + 1, round(1.25 * COLOURED_SIZE))
        picture = Image.new("RGBA", size, (255, 255, 255, 0))
        ImageDraw.Draw(picture).text((0, 0), self.letters, font=self.font, embedded_color=True)
        small = picture.resize((max(1, round(size[0] * self.scale)), max(1, round(size[1] * self.scale))))
        sheet.paste(small, (round(corner[0]), corner[1]), small)


def _font(path: Path, size: int, letters: str) -> _Run:
    joined = needs_shaping(letters)
    if is_coloured(path):
        return _Run(letters, _opened(path, COLOURED_SIZE, joined), size / COLOURED_SIZE)
    return _Run(letters, _opened(path, size, joined), 1)


@lru_cache
def _opened(path: Path, size: int, joined: bool) -> ImageFont.FreeTypeFont:
    # Letters are set one after the other where the script allows it: the same pixels with and without libraqm.
    layout = ImageFont.Layout.RAQM if joined else ImageFont.Layout.BASIC
    return ImageFont.truetype(str(path), size, layout_engine=layout)
