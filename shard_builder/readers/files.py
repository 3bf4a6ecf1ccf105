"""What the readers ask of files: their text, their JSON, and which of the named images are there."""

import json
from collections.abc import Iterable

from core.errors import DataError, StorageError
from core.storage import exists, list_names, read_bytes


def present_files(urls: Iterable[str]) -> set[str]:
    """Those of `urls` that are files.

    Each folder is listed once: one question per file takes minutes on a network disk with 100,000 photos.
    Addresses on the web cannot be listed and count as present; a failed download is a skip of the build.
    """
    names: dict[str, list[str]] = {}
    present = set()
    for url in urls:
        if url.startswith(("http://", "https://")):
            present.add(url)
        else:
            folder, slash, name = url.rpartition("/")
            names.setdefault(folder + slash, []).append(name)
    for folder, wanted in names.items():
        present.update(folder + name for name in set(wanted).intersection(_names_in(folder or ".")))
    return present


def require_folder(folder: str, option: str) -> None:
    """Stop a build whose images folder is mistyped before every image is called missing."""
    if not exists(folder):
        raise DataError(f"{folder}: no such folder. Set source.{option} to the folder that holds the images.")


def read_text(url: str, option: str) -> str:
    """The file as text; a missing or foreign file is a `DataError` that names the option to set."""
    if not exists(url):
        raise DataError(f"{url}: no such file. Set source.{option} to the file.")
    try:
        return read_bytes(url).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{url}: is not UTF-8 text (byte {error.start}). Set source.{option} to the text file."
        ) from None


def read_json(url: str, option: str) -> object:
    """The file's JSON value; a file that ends early is a `DataError`."""
    try:
        return json.loads(read_text(url, option))
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise DataError(f"{url}: is not JSON or ends early ({error.msg}, {place}). Fetch the file again.") from None


def _names_in(folder: str) -> list[str]:
    try:
        return list_names(folder)
    except StorageError:  # no such folder: its images are reported as missing, one by one
        return []
