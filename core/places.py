"""Where we may write: the one place that decides it. A mistyped folder must never be filled with shards.

A folder is written into where it is absent, empty, holds nothing but what we write there, or holds one of the files by
which we know it for ours. `/`, the home folder and what lies above it never are, nor is a blank path.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from core.errors import ConfigError, StorageError
from core.storage import is_local, local

# Locks and temporary names of ours, and what people lay beside a run before it begins: its log, its recipe.
_PASSED_OVER = (".lock*", ".turn*", ".partial-*", "*.log", "*.out", "*.err", "*.yaml", "*.sh")


@dataclass(frozen=True)
class Contents:
    """What a folder of ours holds.

    Attributes:
        what: for people.
        marks: names of which one makes the folder ours, whatever else lies there.
        others: names (patterns) that may lie there before a mark does.
    """

    what: str
    marks: tuple[str, ...]
    others: tuple[str, ...] = ()


SHARD_SET = Contents("a shard set", ("manifest.json", ".build"), ("*.tar", "*.idx"))  # of tars alone: `build_state`
RUN = Contents("a run", ("run.json", "config.yaml", "metrics.csv", "checkpoints"))
EVALUATION = Contents("an evaluation", ("evaluation.yaml", "results.json", *RUN.marks))
DEMO = Contents("a demonstration", ("scenes", "shards-train"), ("cache",))


def expect_given(path: str | Path, key: str) -> None:
    """Raise ConfigError for a blank path: `out=$UNSET` would be the folder one stands in, or `/`."""
    if not str(path).strip():
        raise ConfigError(f"{key} is blank: name a folder. (A variable of the shell that is not set gives this.)")


def expect_folder_of_ours(path: str | Path, key: str, contents: Contents) -> None:
    """Raise where `contents` must not be written to `path`; writes nothing itself. URLs are only asked to be given.

    Raises:
        ConfigError: it is blank, `/`, the home folder or one above it, a file, or holds other things.
    """
    expect_no_common_folder(path, key)
    if not is_local(path):
        return
    folder = local(path)
    try:
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"{key} is {path}, which is a file: name a folder.")
        names = [entry.name for entry in folder.iterdir()] if folder.exists() else []
    except OSError as error:
        raise StorageError(f"{key} is {path}, which cannot be looked into ({error.strerror}).") from error
    if strangers := strange_names(names, contents):
        listed = ", ".join(strangers[:3]) + (", ..." if len(strangers) > 3 else "")
        raise ConfigError(
            f"{key} is {path}, which holds other things ({listed}) and not {contents.what}. Name a new or empty folder."
        )


def expect_no_common_folder(path: str | Path, key: str) -> None:
    """The first part of `expect_folder_of_ours`, for folders that may hold other things: a cache, tars of others.

    Raises:
        ConfigError: it is blank, `/`, the home folder or one above it.
    """
    expect_given(path, key)
    home = Path(os.path.expanduser("~"))  # where nobody knows it, a folder called ~: `Path.home` would raise
    if is_local(path) and (why := why_common(local(path), Path.cwd(), home)):
        raise ConfigError(f"{key} is {path}, {why}")


def why_common(path: Path, here: Path, home: Path) -> str | None:
    """Why a path cannot be a folder of ours, as the end of a sentence; None where it can. Pure but for links.

    Args:
        here: the working folder, absolute.
        home: the home folder.
    """
    if path.parts[:1] == ("~",):
        inner = Path("$HOME", *path.parts[1:])
        return f"where ~ is a letter: a shell replaces it at the start of a word alone. Write {inner}."
    place, home = (here / path).resolve(), home.resolve()
    if place == Path(place.anchor):
        return "the root of the file system. Name a folder of its own."
    if place == home:
        return "the home folder. Name a folder of its own."
    if place in home.parents:
        return f"which holds the home folder {home}. Name a folder of its own."
    return None


def strange_names(names: Collection[str], contents: Contents) -> Sequence[str]:
    """Those of a folder's names that keep us from writing `contents` there, sorted; none where it is ours. Pure."""
    if any(name in contents.marks for name in names):
        return ()
    known = (*contents.others, *_PASSED_OVER)
    return sorted(name for name in names if not any(fnmatch(name, pattern) for pattern in known))
