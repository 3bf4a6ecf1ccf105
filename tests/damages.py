"""Ways to damage the files of a folder, drawn from a seed, each undone exactly."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from core.errors import ShardclipError

FLIP, CUT, EMPTY, LONGER, MISSING, SWAP = "flip", "cut", "empty", "longer", "missing", "swap"
KINDS = {FLIP: 12, CUT: 3, EMPTY: 1, LONGER: 1, MISSING: 1, SWAP: 2}  # how often each is drawn


@dataclass(frozen=True)
class Damage:
    """What happens to one file, or to two that change places."""

    kind: str
    file: Path
    place: int = 0  # the bit that flips, the length that stays, or the number of bytes too many
    other: Path | None = None

    @property
    def names(self) -> set[str]:
        """A message must hold one of these."""
        return {self.file.name} | ({self.other.name} if self.other else set())


def draw_damages(draw: random.Random, files: Sequence[Path], count: int) -> Iterator[Damage]:
    """`count` damages; every file is hit about equally often, however small it is."""
    contents = {file: file.read_bytes() for file in files}
    for number in range(count):
        file = files[number % len(files)]
        size = len(contents[file])
        kind = draw.choices(list(KINDS), list(KINDS.values()))[0] if size else draw.choice([LONGER, MISSING])
        others = [other for other in files if contents[other] != contents[file]]
        if kind == FLIP:
            yield Damage(FLIP, file, draw.randrange(8 * size))
        elif kind == CUT:
            yield Damage(CUT, file, draw.choice([size - 1, draw.randrange(size)]))
        elif kind == LONGER:
            yield Damage(LONGER, file, draw.choice([1, draw.randrange(1, 2000)]))
        elif kind == SWAP:
            alike = [other for other in others if other.suffix == file.suffix]
            yield Damage(SWAP, file, other=draw.choice(alike or others))
        else:
            yield Damage(kind, file)


@contextmanager
def damaged(damage: Damage) -> Iterator[None]:
    """Do it; on leaving, the files are what they were."""
    before = {file: file.read_bytes() for file in (damage.file, damage.other) if file}
    data = before[damage.file]
    if damage.kind == FLIP:
        flipped = bytearray(data)
        flipped[damage.place // 8] ^= 1 << damage.place % 8
        damage.file.write_bytes(flipped)
    elif damage.kind in (CUT, EMPTY):
        damage.file.write_bytes(data[: damage.place])
    elif damage.kind == LONGER:
        damage.file.write_bytes(data + b"\n" * damage.place)
    elif damage.kind == MISSING:
        damage.file.unlink()
    else:
        assert damage.other
        damage.file.write_bytes(before[damage.other])
        damage.other.write_bytes(data)
    try:
        yield
    finally:
        for file, content in before.items():
            file.write_bytes(content)


Finder = Callable[[Damage], str | None]  # why the damage is bad, None when it was found as it should be


def unfound(files: list[Path], count: int, seed: int, find: Finder) -> list[str]:
    """The damages that were not found as they should be, in words."""
    reports = [(damage, reason_of(find, damage)) for damage in draw_damages(random.Random(seed), files, count)]
    return [f"{damage.kind} at {damage.place} of {damage.names}: {why}" for damage, why in reports if why]


def reason_of(find: Finder, damage: Damage) -> str | None:
    try:
        return find(damage)
    except Exception as error:  # damage that ends in a stack trace was not found, it was stumbled over
        return f"stumbled: {error!r}"


def error_of(act: Callable[[], object]) -> str | None:
    try:
        act()
    except ShardclipError as error:
        return str(error)
    return None


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
