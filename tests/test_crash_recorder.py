"""The recorder misses nothing that is written, and the states of a crash are those that a disk may hold."""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from crash_recorder import Enter, Image, Leave, Move, Recording, Sync, Truncate, Write, changed, recorded, tree_of
from crash_states import crash_states, lay_out
from safetensors.torch import save_file


def rewrite(folder: Path) -> None:
    """Every way to change a file that the product uses, and some more."""
    (folder / "text").write_text("ä\nb\n")
    with open(folder / "text", "a") as file:
        file.write("c\n")
    with open(folder / "old", "r+b") as file:
        file.seek(2)
        file.write(b"XY")
        file.truncate(5)
        file.flush()
        os.fsync(file.fileno())
    descriptor = os.open(folder / "old", os.O_WRONLY | os.O_APPEND)
    os.write(descriptor, b"end")
    os.pwrite(descriptor, b"", 0)
    os.close(descriptor)
    os.truncate(folder / "old", 20)
    descriptor, name = tempfile.mkstemp(dir=folder)
    with os.fdopen(descriptor, "wb") as file:
        file.write(bytes(100_000))
    os.replace(name, folder / "large")
    os.link(folder / "large", folder / "linked")
    shutil.rmtree(folder / "tree")
    (folder / "tree" / "again").mkdir(parents=True)
    (folder / "tree" / "again" / "file").touch()
    (folder / "tree").rename(folder / "other")
    (folder / "other" / "again" / "file").write_bytes(b"inside")
    (folder / "gone").unlink()


def write_past_python(folder: Path) -> None:
    save_file({"w": torch.ones(3)}, folder / "weights")
    with open(folder / "old", "r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        view[0:3] = b"map"
    np.lib.format.open_memmap(folder / "array.npy", "w+", np.int64, (7,))[:] = 7


@pytest.mark.parametrize("act", [rewrite, write_past_python])
def test_what_was_recorded_done_again_is_what_lies_there(tmp_path: Path, act: Callable[[Path], None]) -> None:
    root = tmp_path / "root"
    (root / "tree" / "inner").mkdir(parents=True)
    for name in ("old", "gone", "tree/inner/a", "tree/b"):
        (root / name).write_bytes(b"0123456789")
    with recorded(root) as recording:
        act(root)
    image = recording.before
    assert set(image.tree()) == {"old", "gone", "tree", "tree/inner", "tree/inner/a", "tree/b"}
    for event in recording.events:
        if isinstance(event, Write | Truncate):
            image.files[event.node] = changed(image.files[event.node], event)
        elif not isinstance(event, Sync):
            image.name(event)
    assert image.tree() == tree_of(root)
    lay_out(image.tree(), root)
    assert image.tree() == tree_of(root)


def states(before: Image, *events: object) -> list[dict[str, bytes | None]]:
    """Trees of all crashes after the last event."""
    found = crash_states(Recording(before, list(events)), seed=1)  # type: ignore[arg-type]
    return [state.tree for state in found if state.moment == len(events)]


def test_a_synced_file_under_a_synced_name_is_all_that_is_certain() -> None:
    before = Image({1: b"old"}, {0: {"f": 1}})
    enter, write, move = Enter(0, ".p", 2, False), Write(2, 0, b"new!"), Move(0, ".p", "f", 2)
    assert states(before, enter, write, Sync(2), move, Sync(0)) == [{"f": b"new!"}]
    unsynced_name = states(before, enter, write, Sync(2), move)
    assert {"f": b"old"} in unsynced_name and {"f": b"new!"} in unsynced_name
    assert all(tree.get("f") in (b"old", b"new!") for tree in unsynced_name)
    unsynced_content = [tree["f"] for tree in states(before, enter, write, move, Sync(0))]
    assert {b"", b"new!", b"ne", bytes(4)} <= set(unsynced_content)


def test_later_names_may_last_without_earlier_ones() -> None:
    before = Image({1: b"old"}, {0: {"a": 1}})
    found = states(before, Enter(0, ".p", 2, False), Write(2, 0, b"new"), Sync(2), Leave(0, "a"), Move(0, ".p", "b", 2))
    assert {} in found and {"a": b"old", "b": b"new"} in found


def test_a_new_folder_may_be_lost_with_all_that_is_safe_in_it() -> None:
    enters = Enter(0, "d", 1, True), Enter(1, "f", 2, False)
    lost = states(Image(), *enters, Write(2, 0, b"x"), Sync(2), Sync(1))
    assert lost == [{}, {"d": None, "d/f": b"x"}] or lost == [{"d": None, "d/f": b"x"}, {}]
    assert states(Image(), *enters, Write(2, 0, b"x"), Sync(2), Sync(1), Sync(0)) == [{"d": None, "d/f": b"x"}]
