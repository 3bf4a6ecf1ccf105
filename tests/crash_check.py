"""What must be true of an operation after a crash at any moment: `crashes(operation, folder, seed)`.

Its reader finds the old state or the new one, whole; the same command again ends as the undisturbed one did; and once
it has returned, the new state stays whatever happens.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from crash_recorder import Tree, recorded, tree_of
from crash_states import State, crash_states, lay_out


def is_old_or_new(found: Any, old: Any, new: Any) -> bool:
    return bool(found in (old, new))


def is_new(found: Any, new: Any) -> bool:
    return bool(found == new)


@dataclass(frozen=True)
class Operation:
    """Something that writes below a folder, as the tests of crashes see it; every function is given the folder."""

    name: str
    prepare: Callable[[Path], None]  # lays out what is there before, all of it safe
    act: Callable[[Path], None]  # the operation; after a crash it is done again
    check: Callable[[Path], Any]  # what a reader finds, to be compared; raises where it would fail
    may_find: Callable[[Any, Any, Any], bool] = is_old_or_new  # of (found, old, new): after a crash
    ends_right: Callable[[Any, Any], bool] = is_new  # of (found, new): when it was done again
    same_bytes: bool = True  # done again, every file is byte for byte the same: it holds no times
    may_stay: Callable[[str], bool] = lambda name: False  # files that a later writer sweeps


@dataclass
class Crashes:
    """What became of an operation's crashes."""

    name: str
    num_events: int
    num_states: int  # different ones
    num_tried: int
    complaints: list[str]

    def __str__(self) -> str:
        red = f", {len(self.complaints)} bad" if self.complaints else ""
        return f"{self.name}: {self.num_tried} of {self.num_states} states, {self.num_events} events{red}"


def crashes(operation: Operation, root: Path, seed: int, at_most: int = 10**6, stop_at: str | None = None) -> Crashes:
    """Do the operation once, then crash it everywhere; at most so many states, drawn from all.

    Args:
        stop_at: words of a complaint that is enough.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)  # it is recorded; to wait for the disk proves nothing more
        return _crashes(operation, root, seed, at_most, stop_at)


def _crashes(operation: Operation, root: Path, seed: int, at_most: int, stop_at: str | None) -> Crashes:
    root.mkdir(parents=True)
    operation.prepare(root)
    old = operation.check(root)
    with recorded(root) as recording:
        operation.act(root)
    new, wanted = operation.check(root), tree_of(root)
    assert old != new, "the operation changes nothing that its reader sees"
    states = crash_states(recording, seed)
    tried = random.Random(seed).sample(states, min(at_most, len(states)))
    complaints = []
    for state in tried:
        lay_out(state.tree, root)
        if why := _complaint(operation, root, state, old, new, wanted):
            events = [str(event)[:120] for event in recording.events[: state.moment]]
            complaints.append(f"{operation.name}, {state.what} after {events[-1:] or 'nothing'}: {why}")
            if stop_at and stop_at in why:
                break
    return Crashes(operation.name, len(recording.events), len(states), len(tried), complaints)


def _complaint(operation: Operation, root: Path, state: State, old: Any, new: Any, wanted: Tree) -> str | None:
    try:
        found = operation.check(root)
    except Exception as error:
        return f"the reader fails: {error!r}"
    if state.is_finished and found != new:
        return f"done and lost: {found!r:.200}"
    if not operation.may_find(found, old, new):
        return f"neither old nor new: {found!r:.200}"
    try:
        operation.act(root)
        found = operation.check(root)
    except Exception as error:
        return f"the next start fails: {error!r}"
    if not operation.ends_right(found, new):
        return f"the next start ends elsewhere: {found!r:.200}"
    left = {name: data for name, data in tree_of(root).items() if not operation.may_stay(name)}
    if odd := sorted(left.keys() ^ {name for name in wanted if not operation.may_stay(name)}):
        return f"the next start leaves or lacks files: {odd}"
    differ = [name for name in left if left[name] != wanted[name]] if operation.same_bytes else []
    return f"the next start writes other bytes: {differ}" if differ else None
