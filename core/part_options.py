"""The options of a part: their names and types, as its signature has them."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Collection, Mapping
from functools import cache
from typing import Any

TABLE = "table of parts"  # in the metadata of a recipe's field: names and parts, of which it takes one
_GIVEN = "given"  # options that the program itself gives


def one_of(table: Mapping[str, Callable[..., Any]], given: Collection[str] = ()) -> dict[str, Any]:
    """Metadata of a field that names a part of the table."""
    return {TABLE: table, _GIVEN: given}


@cache
def option_types(part: Callable[..., Any]) -> dict[str, Any]:
    """Types of a part's options; of a dataclass by each class's own file, since a base may stand in another one."""
    if dataclasses.is_dataclass(part):
        return typing.get_type_hints(part)
    return typing.get_type_hints(part.__init__ if isinstance(part, type) else part)  # type: ignore[misc]


def owners_of(option: str, metadata: Mapping[Any, Any]) -> list[str]:
    """Names of the parts of a field that have the option; none where the field names no part."""
    if option in metadata.get(_GIVEN, ()):
        return []
    return [name for name, part in metadata.get(TABLE, {}).items() if option in inspect.signature(part).parameters]
