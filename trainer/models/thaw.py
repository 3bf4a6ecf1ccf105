"""Which part of a tower is frozen at which step: `model.freeze` at first, then as `model.thaw` says; free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from core.errors import ConfigError


@dataclass(frozen=True)
class Freezing:
    """What `freeze` is over a run; a pure function of the step, so that a resumed run asks again.

    Attributes:
        stages: (steps done, up to where the tower is frozen from then on), ascending; the first from 0 on.
    """

    stages: tuple[tuple[int, str], ...]

    def at(self, steps_done: int) -> str:
        """What `freeze` is for the step after `steps_done` ones."""
        return next(until for start, until in reversed(self.stages) if start <= steps_done)

    @property
    def last(self) -> str:
        """What is frozen to the end: all else trains at some time."""
        return self.stages[-1][1]


def freezing(freeze: str, thaw: Mapping[str, str], total_steps: int) -> Freezing:
    """`freeze`, and `thaw` with its shares of the run turned into steps.

    Raises:
        ConfigError: a stage would come before the first step, or after the last one.
    """
    stages = [(0, freeze)]
    for key, until in in_order(thaw):
        step = int(_share(key) * total_steps) if key.endswith("%") else int(key)
        if not stages[-1][0] < step < total_steps:
            raise ConfigError(
                f"model.thaw: '{key}' is step {step} of the run's {total_steps:,}: each stage needs a step of its own, "
                f"after the first and before the last. Choose others, or train for longer."
            )
        stages.append((step, until))
    return Freezing(tuple(stages))


def in_order(thaw: Mapping[str, str]) -> list[tuple[str, str]]:
    """The stages of a recipe in the order in which they come.

    Raises:
        ConfigError: a key is neither a number of steps nor a share, there are both, or one stands twice.
    """
    in_shares = {key.endswith("%") for key in thaw}
    if len(in_shares) > 1:
        raise ConfigError(
            f"model.thaw has steps and shares of the run ({', '.join(thaw)}). Give all of them in one way."
        )
    numbers = {key: _share(key) if key.endswith("%") else _steps(key) for key in thaw}
    ordered = sorted(thaw.items(), key=lambda item: numbers[item[0]])
    for (one, _), (other, _) in pairwise(ordered):
        if numbers[one] == numbers[other]:
            raise ConfigError(f"model.thaw: '{one}' and '{other}' are the same step. Leave one of them out.")
    return ordered


def _steps(key: str) -> Fraction:
    if not key.isdecimal() or int(key) < 1:
        raise _no_time(key)
    return Fraction(int(key))


def _share(key: str) -> Fraction:
    try:
        share = Fraction(key.removesuffix("%").strip()) / 100
    except (ValueError, ZeroDivisionError):
        raise _no_time(key) from None
    if not 0 < share < 1:
        raise _no_time(key)
    return share


def _no_time(key: str) -> ConfigError:
    return ConfigError(
        f"model.thaw: '{key}' is neither a number of steps (500) nor a share of the run (25%). "
        "Write it as thaw: {500: layer3, 1000: nothing}."
    )
