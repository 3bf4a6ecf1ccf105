"""Which points of a map look alike: a colour and a shape for each of the commonest classes, on charts and pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Seven hues after Okabe and Ito, told apart by colour-blind readers; each page has those that stand out on it.
ON_LIGHT = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b98a00", "#56b4e9", "#4b2e83")
ON_DARK = ("#4795d8", "#f0723a", "#2fbf94", "#e9a3c9", "#f0d04a", "#a5e0ff", "#7b5fe0")
SHAPES = ("circle", "triangle", "square", "diamond", "cross")  # five, so that 35 classes differ in one or the other
MOST_GROUPS = 24  # in a legend; rarer classes share one entry
NO_CLASS = -1


@dataclass(frozen=True)
class Group:
    """Points that look alike.

    Attributes:
        rows: which points, in order.
        colour, shape: places in the palettes and in SHAPES; None: the quiet points of rare classes, or of none.
    """

    name: str
    rows: tuple[int, ...]
    colour: int | None
    shape: int | None


def grouped(labels: Sequence[int], classes: Sequence[str]) -> list[Group]:
    """The commonest classes first, then all others as one, then points without a class; every point is in one group.

    Args:
        labels: of each point, -1 where it has no class.
    """
    numbers = np.asarray(labels, dtype=np.int64)
    if not classes:
        return [Group("all pictures", tuple(range(len(numbers))), 0, 0)]
    counts = np.bincount(numbers[numbers >= 0], minlength=len(classes))
    order = [int(k) for k in np.argsort(-counts, kind="stable") if counts[k]]
    groups = [
        Group(classes[k], _rows(numbers == k), place % len(ON_LIGHT), place % len(SHAPES))
        for place, k in enumerate(order[:MOST_GROUPS])
    ]
    if rare := order[MOST_GROUPS:]:
        groups.append(Group(f"{len(rare)} other classes", _rows(np.isin(numbers, rare)), None, None))
    if (numbers == NO_CLASS).any():
        groups.append(Group("no class", _rows(numbers == NO_CLASS), None, None))
    return groups


def _rows(chosen: np.ndarray) -> tuple[int, ...]:
    return tuple(int(row) for row in np.flatnonzero(chosen))
