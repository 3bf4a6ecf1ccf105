"""Letters that can be drawn are drawn, all others are escapes: never an empty box."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from core import fonts
from core.fonts import base_font, runs, shown
from shard_builder.pen import Pen

ODD = "狗 🐕 日本 한국어 ᚠ"


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with DejaVu alone."""
    fonts.wide_fonts.cache_clear()
    monkeypatch.setattr(fonts, "_FOLDERS", ())
    yield
    fonts.wide_fonts.cache_clear()


def test_what_no_font_has_is_an_escape(bare: None) -> None:
    assert shown("a 你 b 🐕", (base_font(),)) == "a \\u4f60 b \\U0001f415"
    assert Pen(13).shown(ODD).isascii()
    assert Pen(13).shown("Straße, Ωμέγα, дом, a\\b") == "Straße, Ωμέγα, дом, a\\b"


@pytest.mark.parametrize("text", [ODD, "كلب على الشاطئ", "👨‍👩‍👧 🏖️", "tab\there", "\x07bell", "é́"])
def test_every_letter_that_is_drawn_is_in_its_font(text: str) -> None:
    pen = Pen(13)
    for font, letters in runs(pen.shown(text), pen._fonts):
        drawn = (
            letter for letter in letters if not fonts._is_invisible(letter)
        )  # the others join them, or tell a variant
        assert all(ord(letter) in fonts._coverage(font) for letter in drawn)


def test_no_box_is_drawn_for_any_script(bare: None) -> None:
    """The picture of a letter that a font lacks is its `.notdef`: nothing that is shown looks so."""
    font = ImageFont.truetype(str(base_font()), 20, layout_engine=ImageFont.Layout.BASIC)
    box = bytes(font.getmask("\U0010fffd"))
    for letter in Pen(20).shown(ODD):
        assert letter == " " or bytes(font.getmask(letter)) != box


def test_joined_scripts_are_escapes_where_nothing_joins_them() -> None:
    assert shown("كلب", (base_font(),), can_shape=False) == "\\u0643\\u0644\\u0628"
    assert shown("كلب", (base_font(),), can_shape=True) == "كلب"


def test_another_font_takes_over_letter_by_letter_and_stands_on_the_same_line() -> None:
    wide = base_font().with_name("STIXGeneral.ttf")
    letter = next(
        c for c in map(chr, range(0x2100, 0x2C00)) if ord(c) in fonts._coverage(wide) - fonts._coverage(base_font())
    )
    both = (base_font(), wide)
    assert shown(f"a{letter}b", both) == f"a{letter}b"
    assert runs(f"a{letter}b", both) == [(base_font(), "a"), (wide, letter), (base_font(), "b")]


def test_emoji_of_several_letters_are_the_first_one_alone_where_no_font_has_them(bare: None) -> None:
    assert shown("a 👨\u200d👩\u200d👧 b", (base_font(),)) == "a \\U0001f468 b"
    assert shown("🏃🏽\u200d\u2640\ufe0f", (base_font(),)) == "\\U0001f3c3", "and no sign of a woman"
    assert shown("🇩🇪", (base_font(),)) == "\\U0001f1e9\\U0001f1ea"
    assert shown("1\ufe0f\u20e3 \u2764\ufe0f", (base_font(),)) == "1 \u2764"


EMOJI = [
    "👨\u200d👩\u200d👧",  # a family
    "🏃🏽\u200d\u2640\ufe0f",  # a woman with a tone of skin, running
    "🇩🇪",  # a flag
    "🏴󠁧󠁢󠁥󠁮󠁧󠁿",  # one spelt in tags
    "1\ufe0f\u20e3",
    "\u2764\ufe0f",
]


@pytest.mark.skipif(not any(map(fonts.is_coloured, fonts.wide_fonts(coloured=True))), reason="no font of emoji here")
@pytest.mark.parametrize("emoji", EMOJI)
def test_emoji_of_several_letters_are_one_picture(emoji: str) -> None:
    pen = Pen(26)
    assert pen.shown(emoji) == emoji and pen.length(emoji) == pytest.approx(pen.length("🐕"), rel=0.01)
    ((font, letters),) = runs(emoji, pen._fonts)
    assert fonts.is_coloured(font) and letters == emoji
    assert pen.shown("🚗🏽 👨\u200d🚗") == "🚗 👨", "no such pictures"
    for width in range(40, 200, 9):
        for line in pen.wrapped(emoji * 9, width, 3):
            assert line.rstrip("\u2026") == emoji * round(len(line.rstrip("\u2026")) / len(emoji))


def test_an_escape_is_not_torn_apart(bare: None) -> None:
    for width in range(60, 240, 7):
        lines = Pen(13).wrapped("狗在海滩上奔跑" * 4, width, 3)
        for line in lines:
            assert line.endswith("…") or len(line) % 6 == 0, line
        assert Pen(13).clipped(Pen(13).shown("狗在海滩上奔跑"), width).rstrip("…").count("\\u") * 6 == len(
            Pen(13).clipped(Pen(13).shown("狗在海滩上奔跑"), width).rstrip("…")
        )


def test_text_is_drawn_as_wide_as_it_is_said_to_be() -> None:
    for text in ("a dog on a beach", Pen(26).shown("狗 🐕 a")):
        sheet = Image.new("RGB", (600, 60), (255, 255, 255))
        Pen(26).write(sheet, (10, 10), text, (0, 0, 0))
        columns = np.flatnonzero((np.asarray(sheet) < 200).any(axis=(0, 2)))
        assert 10 <= columns[0] <= 16 and abs(columns[-1] - 10 - Pen(26).length(text)) < 8
    assert Path(base_font(bold=True)).exists()
