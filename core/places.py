"""Where we may write: the one place that decides it. A mistyped folder must never be filled with shards.

A folder is written into where it is absent, empty, holds nothing but what we write there, or holds one of the files by
which we know it for ours: names that nobody else uses, or files that say so themselves. `/`, the home folder and what
lies above it never are, nor is a blank path.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from core.errors import ConfigError, StorageError
from core.storage import PARTIAL_PREFIX, is_local, local

# Locks and temporary names of ours, what people lay beside a run before it begins (its log, its recipe), and what
# systems leave in an empty folder by themselves.
_PASSED_OVER = (
    *(".lock*", ".turn*", f"{PARTIAL_PREFIX}*", "*.log", "*.out", "*.err", "*.yaml", "*.sh"),
    *("lost+found", ".DS_Store", ".gitkeep", ".nfs*"),
)


@dataclass(frozen=True)
class Contents:
    """What a folder of ours holds.

    Attributes:
        what: for people.
        marks: names (paths in the folder) of which one makes the folder ours, whatever else lies there.
        spoken_marks: such names that others use too: JSON files, ours where they have these keys.
        others: names (patterns) that may lie there before a mark does.
        begun: folders that may as well, as long as they hold temporary names of ours alone.
    """

    what: str
    marks: tuple[str, ...]
    spoken_marks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    begun: tuple[str, ...] = ()


SHARD_SET = Contents(  # of tars alone: `build_state`; of a manifest that is not ours: `core.manifest`
    "a shard set", ("manifest.json", ".build/recipe.json"), others=("*.tar", "*.idx"), begun=(".build",)
)
RUN = Contents("a run", ("run.json",), others=("checkpoints",))
EVALUATION = Contents(
    "an evaluation",
    ("evaluation.yaml", *RUN.marks),
    {"results.json": ("format_version", "checkpoint")},  # of versions that wrote no evaluation.yaml
    others=("checkpoints", "metrics.csv"),
)
COMPARISON = Contents("a comparison", (), {"compare.json": ("format_version", "reference")}, others=("compare.html",))
DEMO = Contents("a demonstration", ("scenes", "shards-train"), others=("cache",))


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
        strangers = strange_names(folder, contents) if folder.exists() else ()
    except OSError as error:
        raise StorageError(f"{key} is {path}, which cannot be looked into ({error.strerror}).") from error
    if strangers:
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
    try:
        place, home = (here / path).resolve(), home.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle, a NUL, a folder that is closed to us
        return f"which leads nowhere ({error}). Name another folder."
    if place == Path(place.anchor):
        return "the root of the file system. Name a folder of its own."
    if place == home:
        return "the home folder. Name a folder of its own."
    if place in home.parents:
        return f"which holds the home folder {home}. Name a folder of its own."
    return None


def strange_names(folder: Path, contents: Contents) -> Sequence[str]:
    """Those of a folder's names that keep us from writing `contents` there, sorted; none where it is ours.

    Raises:
        OSError: it cannot be looked into.
    """
    if _is_ours(folder, contents):
        return ()
    begun = [name for name in contents.begun if (folder / name).is_dir() and _holds_partials_alone(folder / name)]
    return unknown_names(_names_in(folder), (*contents.others, *begun))


def unknown_names(names: Collection[str], others: Collection[str]) -> Sequence[str]:
    """Those that are none of `others` (patterns), nor passed over anywhere, sorted. Pure."""
    return sorted(name for name in names if not any(fnmatch(name, pattern) for pattern in (*others, *_PASSED_OVER)))


def _is_ours(folder: Path, contents: Contents) -> bool:
    if any((folder / mark).exists() for mark in contents.marks):
        return True
    return any(_has_keys(folder / name, keys) for name, keys in contents.spoken_marks.items())


def _has_keys(path: Path, keys: Collection[str]) -> bool:
    """Whether a file is a JSON object with these keys."""
    if not path.is_file():
        return False
    try:
        body = json.loads(path.read_bytes())
    except ValueError:
        return False
    return isinstance(body, dict) and all(key in body for key in keys)


def _holds_partials_alone(folder: Path) -> bool:
    return all(name.startswith(PARTIAL_PREFIX) for name in _names_in(folder))


def _names_in(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir()]
