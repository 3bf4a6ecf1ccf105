"""Write down every change that this process makes below a folder: `with recorded(folder) as recording: act()`.

All that Python writes passes the functions of `os` (files are opened by `_pyio`, which calls them too). What gets past
them (memory maps, C code) shows when a file is synced, when it gets another name, and at the end: the recording is then
held to what lies on the disk, and the difference counts as written at that moment. Moves between folders are refused.
"""

from __future__ import annotations

import _pyio
import builtins
import fcntl
import io
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

WRITING_MODES = frozenset("wax+")


@dataclass(frozen=True)
class Write:
    node: int
    offset: int
    data: bytes


@dataclass(frozen=True)
class Truncate:
    node: int
    size: int


@dataclass(frozen=True)
class Sync:
    """Of a file: its content lasts. Of a folder: what its names mean lasts."""

    node: int


@dataclass(frozen=True)
class Enter:
    """A name appears: a new file or folder, or a link."""

    folder: int
    name: str
    node: int
    is_folder: bool

    @property
    def names(self) -> set[str]:
        return {self.name}


@dataclass(frozen=True)
class Leave:
    """A name goes."""

    folder: int
    name: str

    @property
    def names(self) -> set[str]:
        return {self.name}


@dataclass(frozen=True)
class Move:
    """A name becomes another one in the same folder; what had that name is gone."""

    folder: int
    name: str
    target: str
    node: int

    @property
    def names(self) -> set[str]:
        return {self.name, self.target}


Content = Write | Truncate
Naming = Enter | Leave | Move
Event = Content | Sync | Naming
Tree = dict[str, bytes | None]  # path below the root -> content; None is a folder


@dataclass
class Image:
    """Files and folders by number; the root is folder 0."""

    files: dict[int, bytes] = field(default_factory=dict)
    folders: dict[int, dict[str, int]] = field(default_factory=lambda: {0: {}})

    def name(self, event: Naming) -> None:
        """Bring names up to date."""
        entries = self.folders.setdefault(event.folder, {})
        if isinstance(event, Enter):
            entries[event.name] = event.node
            if event.is_folder:
                self.folders.setdefault(event.node, {})
            else:
                self.files.setdefault(event.node, b"")
        elif isinstance(event, Leave):
            entries.pop(event.name, None)
        else:
            if entries.get(event.name) == event.node:
                del entries[event.name]
            entries[event.target] = event.node

    def copy(self) -> Image:
        """Another one, to be changed apart."""
        return Image(dict(self.files), {node: dict(entries) for node, entries in self.folders.items()})

    def tree(self, folder: int = 0, place: str = "") -> Tree:
        """All that has a name."""
        found: Tree = {}
        for name, node in self.folders[folder].items():
            if node in self.folders:
                found[f"{place}{name}"] = None
                found |= self.tree(node, f"{place}{name}/")
            else:
                found[f"{place}{name}"] = self.files[node]
        return found


@dataclass
class Recording:
    """What lay in the folder before, all of it safe, and what was done since."""

    before: Image
    events: list[Event] = field(default_factory=list)


def changed(content: bytes, change: Content) -> bytes:
    """A file's content after a change."""
    if isinstance(change, Truncate):
        return content[: change.size].ljust(change.size, b"\0")
    end = change.offset + len(change.data)
    return content[: change.offset].ljust(change.offset, b"\0") + change.data + content[end:]


def tree_of(root: Path) -> Tree:
    """What lies below a folder on the disk."""
    return {
        str(path.relative_to(root)): None if path.is_dir() else path.read_bytes() for path in sorted(root.rglob("*"))
    }


@contextmanager
def recorded(root: Path) -> Iterator[Recording]:
    """Record what this process does below `root`; the recording is complete when the block ends."""
    recorder = _Recorder(root)
    with pytest.MonkeyPatch.context() as patch:
        recorder.listen(patch)
        yield recorder.recording
    recorder.settle_all()
    found, told = tree_of(root), recorder.live.tree()
    odd = [name for name in found.keys() | told.keys() if found.get(name, 0) != told.get(name, 0)]
    assert not odd, f"these changed past the recorder: {sorted(odd)}"


class _Recorder:
    def __init__(self, root: Path) -> None:
        self._real = {name: getattr(os, name) for name in dir(os) if callable(getattr(os, name))}
        self._open_file = io.open
        self._numbers: dict[tuple[int, int], int] = {}  # (device, inode) -> node
        self._paths: dict[int, str] = {}  # by what name it was last seen
        self._next = 1
        self.live = Image()
        self.recording = Recording(Image())
        self._numbers[_key(os.stat(root))], self._paths[0] = 0, str(root)
        self._take_in(0)
        self.recording = Recording(self.live.copy())

    def listen(self, patch: pytest.MonkeyPatch) -> None:
        """Take the place of what changes files."""
        for name in ("open", "write", "pwrite", "fsync", "mkdir", "link", "truncate", "ftruncate"):
            patch.setattr(os, name, getattr(self, f"_{name}"))
        patch.setattr(os, "fdatasync", self._fsync)
        for name in ("rename", "replace"):
            patch.setattr(os, name, self._mover(self._real[name]))
        for name in ("unlink", "remove", "rmdir"):
            patch.setattr(os, name, self._remover(self._real[name]))
        for module in (builtins, io):
            patch.setattr(module, "open", self._opened)

    def settle_all(self) -> None:
        """Note what got past the functions of `os`."""
        for node, path in self._places():
            self._settle(node, path)

    def _opened(self, file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
        return (_pyio.open if WRITING_MODES & set(mode) else self._open_file)(file, mode, *rest, **named)

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        place = self._place(path, dir_fd) if flags & (os.O_WRONLY | os.O_RDWR) else None
        descriptor: int = self._real["open"](path, flags, mode, dir_fd=dir_fd)
        if place:
            node = self._known(*place, os.fstat(descriptor))
            if flags & os.O_TRUNC and self.live.files[node]:
                self._change(Truncate(node, 0))
        return descriptor

    def _write(self, descriptor: int, data: Any) -> int:
        node = self._node_of(descriptor)
        if node is None:
            return int(self._real["write"](descriptor, data))
        appends = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_APPEND
        offset = len(self.live.files[node]) if appends else os.lseek(descriptor, 0, os.SEEK_CUR)
        count: int = self._real["write"](descriptor, data)
        self._change(Write(node, offset, bytes(data)[:count]))
        return count

    def _pwrite(self, descriptor: int, data: Any, offset: int) -> int:
        count: int = self._real["pwrite"](descriptor, data, offset)
        if (node := self._node_of(descriptor)) is not None:
            self._change(Write(node, offset, bytes(data)[:count]))
        return count

    def _truncate(self, path: Any, size: int) -> None:
        if isinstance(path, int):
            return self._ftruncate(path, size)
        self._real["truncate"](path, size)
        if place := self._place(path, None):
            self._change(Truncate(self._known(*place, os.stat(path)), size))

    def _ftruncate(self, descriptor: int, size: int) -> None:
        self._real["ftruncate"](descriptor, size)
        if (node := self._node_of(descriptor)) is not None:
            self._change(Truncate(node, size))

    def _fsync(self, descriptor: int) -> None:
        self._real["fsync"](descriptor)
        node = self._numbers.get(_key(os.fstat(descriptor)))
        if node is None:
            return
        if node in self.live.files:
            self._settle(node, os.readlink(f"/proc/self/fd/{descriptor}"))
        else:
            self._take_in(node)
        self.recording.events.append(Sync(node))

    def _mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        place = self._place(path, dir_fd)
        self._real["mkdir"](path, mode, dir_fd=dir_fd)
        if place:
            self._known(*place, os.stat(path, dir_fd=dir_fd))

    def _link(self, source: Any, target: Any, **how: Any) -> None:
        self._real["link"](source, target, **how)
        if place := self._place(target, None):
            self._note(Enter(*place, self._numbers[_key(os.stat(source))], is_folder=False))

    def _mover(self, real: Callable[..., None]) -> Callable[..., None]:
        def move(source: Any, target: Any, **how: Any) -> None:
            assert not how, "moves by descriptor are not recorded"
            old, new = self._place(source, None), self._place(target, None)
            if old is None and new is None:
                return real(source, target)
            assert old and new and old[0] == new[0], f"{source} -> {target}: between folders; this is not recorded"
            node = self._known(*old, os.stat(source))
            if node in self.live.files:
                self._settle(node, os.fspath(source))
            else:
                self._take_in(node)
            gone = os.stat(target) if os.path.exists(target) else None
            real(source, target)
            if gone and gone.st_nlink == 1:
                self._numbers.pop(_key(gone), None)
            self._note(Move(*old, new[1], node))
            self._paths[node] = os.path.join(self._paths[new[0]], new[1])

        return move

    def _remover(self, real: Callable[..., None]) -> Callable[..., None]:
        def remove(path: Any, *, dir_fd: int | None = None) -> None:
            place = self._place(path, dir_fd)
            gone = os.stat(path, dir_fd=dir_fd) if place and place[1] in self.live.folders[place[0]] else None
            real(path, dir_fd=dir_fd)
            if place and gone:
                if stat.S_ISDIR(gone.st_mode) or gone.st_nlink == 1:
                    del self._numbers[_key(gone)]  # another file may get the number
                self._note(Leave(*place))

        return remove

    def _place(self, path: Any, dir_fd: int | None) -> tuple[int, str] | None:
        """Folder and name of a path below the root."""
        if isinstance(path, int):
            return None
        parent, name = os.path.split(os.fsdecode(path))
        try:
            folder = self._numbers.get(_key(os.stat(parent or ".", dir_fd=dir_fd)))
        except OSError:
            return None
        return None if folder is None or folder not in self.live.folders else (folder, name)

    def _known(self, folder: int, name: str, found: os.stat_result) -> int:
        """The node that lies there; a new one is noted."""
        if name in self.live.folders[folder]:
            return self.live.folders[folder][name]
        node, self._next = self._next, self._next + 1
        self._numbers[_key(found)] = node
        self._paths[node] = os.path.join(self._paths[folder], name)
        self._note(Enter(folder, name, node, stat.S_ISDIR(found.st_mode)))
        return node

    def _take_in(self, folder: int) -> None:
        """Note the names that are new in a folder, and what lies below them."""
        for entry in sorted(os.scandir(self._paths[folder]), key=lambda entry: entry.name):
            if entry.name not in self.live.folders[folder]:
                node = self._known(folder, entry.name, entry.stat(follow_symlinks=False))
                if node in self.live.files:
                    self._settle(node, entry.path)
                else:
                    self._take_in(node)

    def _settle(self, node: int, path: Any) -> None:
        with self._open_file(path, "rb") as file:
            content = file.read()
        if content != self.live.files[node]:
            if len(content) < len(self.live.files[node]):
                self._change(Truncate(node, len(content)))
            self._change(Write(node, 0, content))

    def _places(self) -> list[tuple[int, str]]:
        """The files that have a name, names that came past the recorder included."""
        for node in list(self.live.folders):
            if os.path.isdir(self._paths[node]) and self._numbers.get(_key(os.stat(self._paths[node]))) == node:
                self._take_in(node)
        return [
            (node, os.path.join(self._paths[folder], name))
            for folder, entries in self.live.folders.items()
            for name, node in entries.items()
            if node in self.live.files and os.path.exists(os.path.join(self._paths[folder], name))
        ]

    def _node_of(self, descriptor: int) -> int | None:
        node = self._numbers.get(_key(os.fstat(descriptor)))
        return node if node in self.live.files else None

    def _change(self, event: Content) -> None:
        self.live.files[event.node] = changed(self.live.files[event.node], event)
        self.recording.events.append(event)

    def _note(self, event: Naming) -> None:
        self.live.name(event)
        self.recording.events.append(event)


def _key(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino
