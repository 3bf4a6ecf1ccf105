"""Dataclasses from what another version wrote: what is absent has its default, what is unknown is passed over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from core.errors import ShardclipError

T = TypeVar("T")


def fill(cls: type[T], values: Any, where: str, error: type[ShardclipError], remedy: str) -> T:
    """`cls` with the values of its fields.

    Args:
        values: a mapping, as JSON gives it; fields that are dataclasses themselves are filled already.
        where, remedy: begin and end of the error's sentence.

    Raises:
        error: a field that has no default is absent.
    """
    if not isinstance(values, Mapping):
        raise error(f"{where}: has {values!r} for a {cls.__name__}, so it was written by another version. {remedy}")
    known = {f.name: values[f.name] for f in fields(cls) if f.name in values}  # type: ignore[arg-type]
    for f in fields(cls):  # type: ignore[arg-type]
        if f.name not in known and f.default is MISSING and f.default_factory is MISSING:
            raise error(f"{where}: has no '{f.name}', so it was written by another version. {remedy}")
    return cls(**known)
