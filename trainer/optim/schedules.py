"""The schedules by name: what is left of the learning rate after warm-up, as a pure function of the step.

To add one: a class here and a line in the table.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from core.errors import ConfigError


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
        if self.growth <= 0:
            raise ConfigError(f"optim.schedule 'warm_restarts': growth is {self.growth}: give a number above 0.")

    def check(self, num_steps: int) -> None:
        """Raise where a cycle would have no step."""
        starts = [*self.starts(num_steps), num_steps]
        if any(start == end for start, end in pairwise(starts)):
            raise ConfigError(
                f"optim.schedule 'warm_restarts': the {num_steps} steps after warm-up do not hold {self.cycles} cycles "
                f"that each are {self.growth:g} times as long as the one before. Set fewer cycles, or train for longer."
            )

    def share(self, step: int, num_steps: int) -> float:
        starts = [*self.starts(num_steps), num_steps]
        start, end = next((a, b) for a, b in pairwise(starts) if a <= step < b)
        return _half_cosine((step - start) / (end - start))

    def starts(self, num_steps: int) -> list[int]:
        """At which step each cycle begins."""
        before = [sum(self.growth**i for i in range(cycle)) for cycle in range(self.cycles + 1)]
        return [round(num_steps * length / before[-1]) for length in before[:-1]]


def _half_cosine(progress: float) -> float:
    return (1 + math.cos(math.pi * progress)) / 2


SCHEDULES: Mapping[str, Callable[..., Schedule]] = {
    "cosine": Cosine,
    "linear": Linear,
    "constant": Constant,
    "warm_restarts": WarmRestarts,
}
