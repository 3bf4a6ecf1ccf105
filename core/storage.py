"""The one door to files: local paths and fsspec URLs; everything written is whole or absent.

One commit protocol: write a temporary name in the same folder, flush and fsync, verify, rename, fsync the folder.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import fsspec

from core.errors import DamagedError, StorageError, cannot_write
from core.locks import turn
from core.sync import make_folder, sync

_UMASK = os.umask(0)  # there is no way to look at it alone, so it is looked at once, before there are threads
os.umask(_UMASK)
_LOCAL_PROTOCOLS = ("file", "local")  # fsspec's names for this machine's own files
PARTIAL_PREFIX = ".partial-"  # temporary names; never read, swept by the next writer


def join(base: str | Path, *names: str) -> str:
    """`base/name/...` for a path or a URL.

    Raises:
        StorageError: `base` is blank; it would be the root of the file system.
    """
    if not str(base).strip():
        raise StorageError("a path is blank: name a folder, a file or a URL.")
    return "/".join([str(base).rstrip("/") or "/", *names]) if names else str(base)


def is_local(url: str | Path) -> bool:
    """Whether `url` is a path on this machine (`file://` and `local://` count, in any case)."""
    protocol, found, _ = str(url).partition("://")
    return not found or protocol.lower() in _LOCAL_PROTOCOLS


def local(url: str | Path) -> Path:
    """The path of a local URL."""
    protocol, found, path = str(url).partition("://")
    return Path(path if found and protocol.lower() in _LOCAL_PROTOCOLS else url)


def exists(url: str | Path) -> bool:
    """Whether a file or folder is there."""
    if is_local(url):
        return local(url).exists()
    filesystem, path = _remote(url)
    return bool(filesystem.exists(path))


def read_bytes(url: str | Path) -> bytes:
    """The whole file.

    Raises:
        StorageError: it is missing or unreadable.
    """
    try:
        if is_local(url):
            return local(url).read_bytes()
        filesystem, path = _remote(url)
        return bytes(filesystem.cat_file(path))
    except FileNotFoundError:
        raise StorageError(f"{url}: no such file.") from None
    except OSError as error:
        raise StorageError(f"{url}: cannot be read ({error.strerror or error}).") from error


def read_start(url: str | Path, count: int) -> bytes:
    """The first `count` bytes of a file that is there."""
    filesystem, path = _remote(url)
    with filesystem.open(path, "rb") as file:
        return bytes(file.read(count))


def size(url: str | Path) -> int:
    """The file's size in bytes."""
    try:
        if is_local(url):
            return local(url).stat().st_size
        filesystem, path = _remote(url)
        return int(filesystem.size(path))
    except FileNotFoundError:
        raise StorageError(f"{url}: no such file.") from None


def list_names(url: str | Path) -> list[str]:
    """Sorted names of the files directly in a folder."""
    return sorted(name for name, kind in _entries(url) if kind == "file")


def list_folders(url: str | Path) -> list[str]:
    """Sorted names of the folders directly in a folder."""
    return sorted(name for name, kind in _entries(url) if kind == "directory")


def remove(url: str | Path) -> None:
    """Delete a file or a folder with all that is in it; absent is fine."""
    if not is_local(url):
        filesystem, path = _remote(url)
        if filesystem.exists(path):
            filesystem.rm(path, recursive=True)
    elif local(url).is_dir():
        shutil.rmtree(local(url))
    else:
        local(url).unlink(missing_ok=True)


def publish(write: Callable[[Path], None], target: str | Path, expected_sha256: str | None = None) -> str:
    """Let `write` fill a temporary file, then give it its name in one step; returns the sha256.

    Raises:
        DamagedError: the bytes are not the expected ones; nothing is published.
        StorageError: the disk is full or the folder cannot be written; nothing is left.
    """
    if not is_local(target):
        return _publish_remote(write, str(target), expected_sha256)
    path = local(target)
    try:
        make_folder(path.parent)
        with _temporary_name(path.parent, path.name) as partial:
            write(partial)
            sync(partial)
            digest = sha256_of(partial)
            _expect(digest, expected_sha256, target)
            os.replace(partial, path)
        sync(path.parent)
    except OSError as error:
        raise cannot_write(target, error) from error
    return digest


def publish_bytes(data: bytes, target: str | Path) -> str:
    """Publish `data` whole; returns its sha256."""
    return publish(lambda path: _write(path, data), target, hashlib.sha256(data).hexdigest())


def publish_folder(fill: Callable[[Path], None], target: Path) -> None:
    """Let `fill` write files into a temporary folder, then give the folder its name in one step.

    Raises:
        StorageError: `target` is there already, or cannot be written; nothing is left.
    """
    if target.exists():
        raise StorageError(f"{target}: is there already. Choose another name or delete it.")
    try:
        make_folder(target.parent)
        partial = Path(tempfile.mkdtemp(prefix=f"{PARTIAL_PREFIX}{target.name}.", dir=target.parent))
        try:
            partial.chmod(0o777 & ~_UMASK)
            fill(partial)
            for path in [*partial.rglob("*"), partial]:
                sync(path)
            os.rename(partial, target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        sync(target.parent)
    except OSError as error:
        raise cannot_write(target, error) from error


def sweep_partials(folder: Path, name: str = "") -> None:
    """Remove what killed writers left behind, of the file `name` or of all; call it under the folder's lock."""
    for path in folder.glob(f"{PARTIAL_PREFIX}{name}*"):
        remove(path)


def sha256_of(path: str | Path) -> str:
    """The file's sha256 in hexadecimal."""
    filesystem, name = _remote(path)
    with filesystem.open(name, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(url: str, cache_dir: Path | None, sha256: str | None) -> Path:
    """A local path to the file: the file itself, or a verified copy in the cache.

    Raises:
        StorageError: a remote file without a cache folder, or not to be had.
        DamagedError: what arrived is not what the manifest names.
    """
    if is_local(url):
        return local(url)
    if cache_dir is None:
        raise StorageError(f"{url}: is remote, and no cache folder is set. Set data.cache_dir to a local disk.")
    path = cache_dir / hashlib.sha256(f"{url} {sha256}".encode()).hexdigest()[:16] / url.rsplit("/", 1)[-1]
    if not path.exists():  # published whole after verification, so what is there is right
        with turn(path.parent):  # the processes of a node want the same shard at once: one of them fetches it
            if not path.exists():
                filesystem, remote_path = _remote(url)
                publish(lambda partial: filesystem.get_file(remote_path, str(partial)), path, sha256)
    return path


def _entries(url: str | Path) -> list[tuple[str, str]]:
    """Names of what lies in a folder, each with "file", "directory" or something else."""
    try:
        if is_local(url):
            kinds = [(entry.name, entry.is_file(), entry.is_dir()) for entry in os.scandir(local(url))]
            return [(name, "file" if is_file else "directory" if is_dir else "") for name, is_file, is_dir in kinds]
        filesystem, path = _remote(url)
        return [(e["name"].rstrip("/").rsplit("/", 1)[-1], e["type"]) for e in filesystem.ls(path, detail=True)]
    except (FileNotFoundError, NotADirectoryError):
        raise StorageError(f"{url}: no such folder.") from None


def _remote(url: str | Path) -> tuple[fsspec.AbstractFileSystem, str]:
    try:
        return fsspec.core.url_to_fs(str(local(url) if is_local(url) else url))
    except (ImportError, ValueError) as error:
        raise StorageError(f"{url}: {error}") from error


def _publish_remote(write: Callable[[Path], None], url: str, expected_sha256: str | None) -> str:
    filesystem, path = _remote(url)
    with tempfile.TemporaryDirectory() as folder:
        partial = Path(folder) / "file"
        try:
            write(partial)
        except OSError as error:
            raise cannot_write(f"{folder} (on its way to {url})", error) from error
        digest = sha256_of(partial)
        _expect(digest, expected_sha256, url)
        # Object stores show a finished upload or nothing; others get a temporary name and a move.
        is_file_tree = "file" in filesystem.protocol or "sftp" in filesystem.protocol
        parent, _, name = path.rpartition("/")
        filesystem.makedirs(parent, exist_ok=True)
        upload = f"{parent}/{PARTIAL_PREFIX}{name}" if is_file_tree else path
        filesystem.put_file(str(partial), upload)
        if upload != path:
            filesystem.mv(upload, path)
    return digest


@contextmanager
def _temporary_name(folder: Path, name: str) -> Iterator[Path]:
    descriptor, text = tempfile.mkstemp(prefix=f"{PARTIAL_PREFIX}{name}.", dir=folder)
    os.fchmod(descriptor, 0o666 & ~_UMASK)
    os.close(descriptor)
    try:
        yield Path(text)
    finally:
        with suppress(FileNotFoundError):  # renamed: published
            os.unlink(text)


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _expect(digest: str, expected: str | None, where: str | Path) -> None:
    if expected not in (None, digest):
        remedy = "Delete it and build or fetch it again."
        raise DamagedError(f"{where}: sha256 is {digest[:12]}, {str(expected)[:12]} was expected. {remedy}")
