"""The schedules by name: what is left of the learning rate after warm-up, as a pure function of the step.

To add one: a class here and a line in the table.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import ClassVar

from core.errors import ConfigError

_MOST_CYCLES = 1000
_LEAST_GROWTH, _MOST_GROWTH = 0.01, 100
_MOST_UNLIKE = 18  # powers of ten between two cycles' lengths: no run has so many steps


@dataclass(frozen=True)
class Schedule(ABC):
    """How the learning rate goes from its peak (1) to its floor (0)."""

    falls: ClassVar[bool] = True  # else there is no floor

    def check(self, num_steps: int) -> None:
        """Raise where so few steps cannot hold what the options ask for."""
        return

    @abstractmethod
    def share(self, step: int, num_steps: int) -> float:
        """From 1 at step 0 towards 0 at `num_steps`, which is never asked for.

        Args:
            step: steps done since the end of the warm-up.
            num_steps: from the end of the warm-up to the end of the run.
        """


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine (Loshchilov 2017)."""

    def share(self, step: int, num_steps: int) -> float:
        return _half_cosine(step / num_steps)


@dataclass(frozen=True)
class Linear(Schedule):
    """A straight line."""

    def share(self, step: int, num_steps: int) -> float:
        return 1 - step / num_steps


@dataclass(frozen=True)
class Constant(Schedule):
    """The peak to the end."""

    falls = False

    def share(self, step: int, num_steps: int) -> float:
        return 1.0


@dataclass(frozen=True)
class WarmRestarts(Schedule):
    """Half a cosine again and again (SGDR: Loshchilov 2017); the run ends where the last one does."""

    cycles: int = 4  # how often the rate falls
    growth: float = 1.0  # each cycle is so many times as long as the one before it

    def __post_init__(self) -> None:
        if self.cycles < 1:
            raise ConfigError(f"optim.schedule 'warm_restarts': cycles is {self.cycles}: at least 1 is needed.")
        if self.cycles > _MOST_CYCLES:
            raise ConfigError(
                f"optim.schedule 'warm_restarts': cycles is {self.cycles}: at most {_MOST_CYCLES:,} are possible."
            )
        if not _LEAST_GROWTH <= self.growth <= _MOST_GROWTH:
            raise ConfigError(
                f"optim.schedule 'warm_restarts': growth is {self.growth}: give a number from {_LEAST_GROWTH} to "
                f"{_MOST_GROWTH}."
            )
        if (self.cycles - 1) * abs(math.log10(self.growth)) > _MOST_UNLIKE:
            raise ConfigError(
                f"optim.schedule 'warm_restarts': with growth {self.growth:g} the first and the last of {self.cycles} "
                f"cycles differ by more than 10^{_MOST_UNLIKE}: no run holds both. Choose a growth nearer to 1."
            )

    def check(self, num_steps: int) -> None:
        """Raise where a cycle would have no step."""
        _bounds(self.cycles, self.growth, num_steps)

    def share(self, step: int, num_steps: int) -> float:
        bounds = _bounds(self.cycles, self.growth, num_steps)
        cycle = bisect_right(bounds, step) - 1
        start, end = bounds[cycle], bounds[cycle + 1]
        return _half_cosine((step - start) / (end - start))


@lru_cache(maxsize=8)  # it is asked at every step
def _bounds(cycles: int, growth: float, num_steps: int) -> tuple[int, ...]:
    """At which step each cycle begins, and the last one ends.

    Raises:
        ConfigError: a cycle would have no step.
    """
    before = [sum(growth**i for i in range(cycle)) for cycle in range(cycles + 1)]
    bounds = (*(round(num_steps * length / before[-1]) for length in before[:-1]), num_steps)
    if any(start == end for start, end in pairwise(bounds)):
        raise ConfigError(
            f"optim.schedule 'warm_restarts': the {num_steps} steps after warm-up do not hold {cycles} cycles "
            f"that each are {growth:g} times as long as the one before. Set fewer cycles, or train for longer."
        )
    return bounds


def _half_cosine(progress: float) -> float:
    return (1 + math.cos(math.pi * progress)) / 2


SCHEDULES: Mapping[str, Callable[..., Schedule]] = {
    "cosine": Cosine,
    "linear": Linear,
    "constant": Constant,
    "warm_restarts": WarmRestarts,
}
