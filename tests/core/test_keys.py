"""Keys of recipes are read from where they are declared, and their limits are those of the checks themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.config import Choice
from core.errors import ConfigError
from core.key_meanings import meanings_of, summary_of
from core.keys import Key, interval, keys_of, options_of


@dataclass(frozen=True)
class Base:
    """What all have.

    Attributes:
        tokens: name of a column, which
            may take two lines.
    """

    tokens: str = "a"


@dataclass(frozen=True)
class Inner(Base):
    size: int = 224  # pixels, both sides
    # Peak of a part by name:
    # "#" is no comment here.
    rates: dict[str, float] = field(default_factory=dict)
    unsaid: int = 3
    share: float | None = None  # share of it; None: all

    def __post_init__(self) -> None:
        if not 16 <= self.size <= 4096:
            raise ConfigError("size")
        if self.share is not None and not 0 < self.share <= 1:
            raise ConfigError("share")


@dataclass(frozen=True)
class Outer:
    out: Path  # a folder
    part: Choice = Choice("one")  # what is chosen
    inner: Inner = Inner()
    kind: Literal["x", "y"] = "x"  # of something
    wait_s: float = 1.5  # until it gives up


def a_function(given: int, count: int, *, name: str = "n", both: float = 1.0, ways: float = 2.0) -> None:
    """Do it. And more.

    Args:
        count: how
            many.
        name: of it (see: there).
        both, ways: shared.

    Returns:
        nothing: at all.
    """


def test_meanings_come_from_comments_and_docstrings() -> None:
    assert meanings_of(Inner) == {
        "tokens": "name of a column, which may take two lines.",
        "size": "pixels, both sides",
        "rates": 'Peak of a part by name: "#" is no comment here.',
        "share": "share of it; None: all",
    }
    assert meanings_of(a_function) == {
        "count": "how many.",
        "name": "of it (see: there).",
        "both": "shared.",
        "ways": "shared.",
    }
    assert summary_of(a_function) == "Do it. And more."


def test_every_key_has_type_default_unit_and_limits() -> None:
    keys = {key.name: key for key in keys_of(Outer, {"out": "o"}, {"part": ["one", "two"]})}
    assert keys["out"] == Key("out", "path", None, "", "", "a folder")
    assert keys["part"] == Key("part", "part", "one", "", "one, two", "what is chosen")
    assert keys["inner.size"] == Key("inner.size", "whole number", "224", "pixels", "16 to 4096", "pixels, both sides")
    assert keys["inner.share"].allowed == "above 0 to 1" and keys["inner.share"].meaning == "share of it; null: all"
    assert keys["inner.rates"].type == "name: number" and keys["inner.rates"].default == "{}"
    assert (keys["kind"].type, keys["kind"].allowed) == ("word", "x, y")
    assert keys["wait_s"].unit == "seconds"
    assert keys["inner.unsaid"].meaning == ""
    assert [key.name for key in options_of(a_function, ["given"])] == ["count", "name", "both", "ways"]


@pytest.mark.parametrize(
    ("accepts", "inside", "is_whole", "words"),
    [
        (lambda x: x >= 0, 5, True, "0 or more"),
        (lambda x: 0 <= x < 1, 0.5, False, "0 to below 1"),
        (lambda x: x > 0, 5e-4, False, "above 0"),
        (lambda x: -3 < x <= 0.25, 0.0, False, "above -3 to 0.25"),
        (lambda x: x <= 7, 2, True, "at most 7"),
        (lambda x: x < 7, 2.0, False, "below 7"),
        (lambda x: True, 2, True, ""),
        (lambda x: x == 0, 0, True, ""),
    ],
)
def test_limits_are_told_in_words(accepts: Callable[[float], bool], inside: float, is_whole: bool, words: str) -> None:
    assert interval(accepts, inside, is_whole) == words


@given(st.integers(-5000, 5000), st.integers(0, 5000), st.data())
def test_whole_limits_are_found_wherever_they_are(low: int, width: int, data: st.DataObject) -> None:
    inside = data.draw(st.integers(low, low + width))
    found = interval(lambda x: low <= x <= low + width, inside, True)
    assert found == (f"{low} to {low + width}" if width else "")
