"""Files that carry a hash of themselves, edited and signed again: what another version might have written."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Place = tuple[str | int, ...]
Sign = Callable[[dict[str, Any]], bytes]


def sign_manifest(body: dict[str, Any], key: str = "manifest_sha256") -> bytes:
    """As `manifest.json` and, under another key, `column.json` are signed."""
    digest = hashlib.sha256(json.dumps(body, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
    return (json.dumps({**body, key: digest}, indent=1, ensure_ascii=False) + "\n").encode()


def sign_checkpoint(body: dict[str, Any]) -> bytes:
    """As a checkpoint's `manifest.json` is signed."""
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**body, "sha256": digest}, indent=1, sort_keys=True) + "\n").encode()


def sign_build(body: dict[str, Any]) -> bytes:
    """As `build.json` is signed."""
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode() + b"\n").hexdigest()
    return (json.dumps({**body, "sha256": digest}, indent=1, ensure_ascii=False) + "\n").encode()


def body_of(path: Path, key: str) -> dict[str, Any]:
    """What the file says, without its hash."""
    return {name: value for name, value in json.loads(path.read_bytes()).items() if name != key}


def without_each_field(body: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """The body without each of its fields in turn, nested ones too, and the place of what is gone."""
    for where in _places(body, place):
        changed = copy.deepcopy(body)
        del _parent(changed, where)[where[-1]]
        yield where, changed


def with_an_unknown_field(body: Any) -> Iterator[tuple[Place, Any]]:
    """The body with a field that no version knows, in each of its objects in turn, and that object's place."""
    for where in [(), *(p for p in _places(body, (), items=True) if isinstance(_at(body, p), dict))]:
        changed = copy.deepcopy(body)
        _at(changed, where)["of_tomorrow"] = {"x": [1, None]}
        yield where, changed


def _places(value: Any, place: Place, items: bool = False) -> Iterator[Place]:
    """Where the fields of nested objects are; `items`: and the members of lists."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield (*place, key)
            yield from _places(item, (*place, key), items)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            if items:
                yield (*place, number)
            yield from _places(item, (*place, number), items)


def _at(body: Any, place: Place) -> Any:
    for step in place:
        body = body[step]
    return body


def _parent(body: Any, place: Place) -> Any:
    return _at(body, place[:-1])
