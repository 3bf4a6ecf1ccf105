"""What a disk may hold when the power fails: the states of a recording at each moment, bounded, drawn from a seed.

What was synced is there. Of what was not: a file's content is there whole, not at all, torn off after any byte, or
as zeros of the right length; a change of a name has happened or not, each for itself, whatever was done before or
after it. Only changes of one and the same name keep their order.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from crash_recorder import Content, Event, Image, Naming, Recording, Sync, Tree, Truncate, Write, changed

NUM_MISSING, NUM_DRAWN = 8, 24  # states at each moment: with one name's change missing, and all by chance
KINDS = WHOLE, LOST, TORN, ZEROS = "whole", "lost", "torn", "zeros"


@dataclass(frozen=True)
class State:
    """What lies on the disk after a crash."""

    moment: int  # so many events had happened
    what: str  # for people
    tree: Tree
    is_finished: bool  # the operation had returned


def crash_states(recording: Recording, seed: int) -> list[State]:
    """All different states, in the order of their moments."""
    draw, disk = random.Random(seed), Disk(recording.before)
    states = list(_at_moment(disk, 0, not recording.events, draw))
    for number, event in enumerate(recording.events, 1):
        disk.take(event)
        states += _at_moment(disk, number, number == len(recording.events), draw)
    different = {(frozenset(state.tree.items()), state.is_finished): state for state in reversed(states)}
    return sorted(different.values(), key=lambda state: state.moment)


def lay_out(tree: Tree, root: Path) -> None:
    """Make the folder hold just this."""
    shutil.rmtree(root)
    root.mkdir()
    for name, content in tree.items():  # folders come before what is in them
        if content is None:
            (root / name).mkdir()
        else:
            (root / name).write_bytes(content)


class Disk:
    """What is safe, and what waits to be."""

    def __init__(self, before: Image) -> None:
        self._safe = before.copy()
        self._contents: dict[int, list[Content]] = {}
        self.namings: list[Naming] = []

    def take(self, event: Event) -> None:
        """Let one thing happen."""
        if isinstance(event, Write | Truncate):
            self._contents.setdefault(event.node, []).append(event)
        elif not isinstance(event, Sync):
            self.namings.append(event)
        elif event.node in self._contents:
            self._safe.files[event.node] = self._content(event.node, WHOLE, 0)
            del self._contents[event.node]
        else:
            for naming in [naming for naming in self.namings if naming.folder == event.node]:
                self._safe.name(naming)
                self.namings.remove(naming)

    def after(self, namings: Sequence[Naming], choose: Callable[[], str], where: float = 0.5) -> Tree:
        """What is found if just these of the waiting changes of names happened.

        Args:
            choose: asked for every file that waits: WHOLE, LOST, TORN or ZEROS.
            where: contents are torn there, 0 to 1.
        """
        found = self._safe.copy()
        found.files |= {node: self._content(node, choose(), where) for node in self._contents}
        for naming in namings:
            found.name(naming)
        return found.tree()

    def _content(self, node: int, kind: str, where: float) -> bytes:
        content, waiting = self._safe.files.get(node, b""), self._contents[node]
        if kind == LOST:
            return content
        for change in _torn(waiting, where) if kind == TORN else waiting:
            content = changed(content, change)
        if kind == ZEROS:
            for change in waiting:
                if isinstance(change, Write):
                    zeros = Write(node, change.offset, bytes(len(change.data)))
                    content = changed(content, zeros)[: len(content)]
        return content


def _at_moment(disk: Disk, moment: int, is_finished: bool, draw: random.Random) -> Iterator[State]:
    waiting = list(disk.namings)

    def state(what: str, namings: Sequence[Naming], choose: Callable[[], str], where: float = 0.5) -> State:
        return State(moment, what, disk.after(namings, choose, where), is_finished)

    yield state("nothing unsynced is there", [], lambda: LOST)
    yield state("everything is there", waiting, lambda: WHOLE)
    yield state("contents are torn", waiting, lambda: TORN)
    yield state("names without contents", waiting, lambda: LOST)
    yield state("names and lengths without contents", waiting, lambda: ZEROS)
    yield state("contents without names", [], lambda: WHOLE)
    for missing in draw.sample(waiting, min(NUM_MISSING, len(waiting))):
        yield state(f"all but {missing}", _without(waiting, [missing]), lambda: WHOLE)
    for _ in range(NUM_DRAWN):
        missing = draw.sample(waiting, draw.randint(0, len(waiting)))
        yield state("some of it", _without(waiting, missing), lambda: draw.choice(KINDS), draw.random())


def _without(namings: Sequence[Naming], missing: Sequence[Naming]) -> list[Naming]:
    """Those that happened: neither a missing one nor what follows on it under the same name."""
    happened, gone = [], set[tuple[int, str]]()
    for naming in namings:
        names = {(naming.folder, name) for name in naming.names}
        if names & gone or naming in missing:
            gone |= names
        else:
            happened.append(naming)
    return happened


def _torn(waiting: Sequence[Content], where: float) -> list[Content]:
    """The changes up to a place in their bytes."""
    left = int(where * sum(_length(change) for change in waiting))
    kept: list[Content] = []
    for change in waiting:
        if left < _length(change):
            return [*kept, Write(change.node, change.offset, change.data[:left])] if isinstance(change, Write) else kept
        kept.append(change)
        left -= _length(change)
    return kept


def _length(change: Content) -> int:
    return len(change.data) if isinstance(change, Write) else 1
