"""Every key of a recipe as a value: type, default, unit, allowed values, meaning; all read from the dataclasses."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from core.config import Choice, from_mapping, to_mapping
from core.errors import ShardclipError
from core.key_meanings import meanings_of
from core.part_options import option_types

_NAMES = {int: "whole number", float: "number", str: "text", bool: "true or false", Path: "path", Choice: "part"}
_UNITS = (
    "batches", "captions", "checkpoints", "epochs", "images", "pairs", "pixels", "probability", "processes", "samples",
    "seconds", "share", "steps", "turns",
)  # fmt: skip
_FIRST_WORD = re.compile(r"(?:decoding )?(\w+)")
_FAR = 10**15  # beyond any limit of a number
_DIGITS = 9  # to which the limits of numbers are found


@dataclass(frozen=True)
class Key:
    """One key of a recipe, or one option of a part.

    Attributes:
        name: with the keys above it, `optim.lr`.
        default: as a recipe would write it; None: it has to be given.
        unit: "" where it has none.
        allowed: in words; "" where everything of that type is.
    """

    name: str
    type: str
    default: str | None
    unit: str
    allowed: str
    meaning: str


def keys_of(cls: type, example: Mapping[str, Any], tables: Mapping[str, Sequence[str]]) -> list[Key]:
    """Every key of a recipe's dataclass, those of nested ones in their place.

    Args:
        example: a recipe of it that is accepted; it holds what has no default. Limits are those that hold beside it.
        tables: the names of a part's table, by key.
    """

    def accepts(name: str, value: Any) -> bool:
        recipe = _with(example, name.split("."), value)
        return _is_accepted(lambda: from_mapping(cls, recipe, "example"))

    return list(_keys(cls, "", accepts, tables))


def options_of(part: Callable[..., Any], given: Sequence[str]) -> list[Key]:
    """The options of a part of a table, but what the program itself gives."""
    meanings, hints = meanings_of(part), option_types(part)
    parameters = {n: p for n, p in inspect.signature(part).parameters.items() if n not in given}
    needed = {n: _example_of(hints[n]) for n, p in parameters.items() if p.default is inspect.Parameter.empty}

    def accepts(name: str, value: Any) -> bool:
        return _is_accepted(lambda: part(**{**needed, name: value}))

    can_be_tried = is_dataclass(part)  # functions do their work when they are called
    return [
        _key(
            name,
            hints[name],
            None if parameter.default is inspect.Parameter.empty else parameter.default,
            parameter.default is inspect.Parameter.empty,
            meanings.get(name, ""),
            accepts if can_be_tried else None,
            (),
        )
        for name, parameter in parameters.items()
    ]


def _keys(
    cls: type, prefix: str, accepts: Callable[[str, Any], bool], tables: Mapping[str, Sequence[str]]
) -> Iterator[Key]:
    hints, meanings = typing.get_type_hints(cls), meanings_of(cls)
    for field in dataclasses.fields(cls):
        name, declared = prefix + field.name, hints[field.name]
        if is_dataclass(declared) and declared is not Choice:
            yield from _keys(typing.cast(type, declared), f"{name}.", accepts, tables)
            continue
        is_needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        default = field.default if field.default is not dataclasses.MISSING else None
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        yield _key(name, declared, default, is_needed, meanings.get(field.name, ""), accepts, tables.get(name, ()))
        for kind in get_args(declared):  # X | None: its own keys below it
            if is_dataclass(kind) and kind is not Choice:
                yield from _keys(typing.cast(type, kind), f"{name}.", accepts, tables)


def _key(
    name: str,
    declared: Any,
    default: Any,
    is_needed: bool,
    meaning: str,
    accepts: Callable[[str, Any], bool] | None,
    names: Sequence[str],
) -> Key:
    allowed = ", ".join(names) or _allowed(name, declared, default, accepts)
    written = None if is_needed else _written(default)
    meaning = re.sub(r"\bNone\b", "null", meaning).replace("():", "[]:")  # as recipes write them
    is_number = {int, float} & {declared, *get_args(declared)}
    return Key(name, _spoken(declared), written, _unit(name, meaning) if is_number else "", allowed, meaning)


def _spoken(declared: Any) -> str:
    origin, args = get_origin(declared), get_args(declared)
    if origin in (Union, types.UnionType):
        kinds = [_spoken(a) for a in args if a is not type(None)]
        return " or ".join([*kinds, *(["null"] if type(None) in args else [])])
    if origin is Literal:
        return "word"
    if origin is tuple and args[-1] is Ellipsis:
        return f"list of {_spoken(args[0])}"
    if origin is tuple:
        return f"{len(args)} x {_spoken(args[0])}"
    if origin in (dict, Mapping):
        return f"name: {_spoken(args[1])}"
    if is_dataclass(declared) and declared is not Choice:
        return "{" + ", ".join(field.name for field in dataclasses.fields(declared)) + "}"
    return _NAMES.get(declared, getattr(declared, "__name__", str(declared)))


def _written(default: Any) -> str:
    value = to_mapping(default)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_quoted(_written(item)) for item in value) + "]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _quoted(item: str) -> str:
    """A list's item as YAML wants it beside commas and brackets."""
    return json.dumps(item) if set(item) & set("{}[],:#") else item


def _unit(name: str, meaning: str) -> str:
    first = _FIRST_WORD.match(meaning)
    if name.endswith("_s"):
        return "seconds"
    return first[1] if first and first[1] in _UNITS else ""


def _allowed(name: str, declared: Any, default: Any, accepts: Callable[[str, Any], bool] | None) -> str:
    kinds = [kind for kind in get_args(declared) or (declared,) if kind is not type(None)]
    if get_origin(declared) is Literal:
        return ", ".join(str(word) for word in get_args(declared))
    if len(kinds) != 1 or get_origin(declared) in (tuple, dict, Mapping):
        return ""
    if get_origin(kinds[0]) is Literal:
        return ", ".join(str(word) for word in get_args(kinds[0]))
    if kinds[0] not in (int, float) or accepts is None:
        return ""
    tried = [default] if isinstance(default, int | float) else [1, 2, 256, 0.5]
    inside = next((value for value in tried if accepts(name, value)), None)
    return "" if inside is None else interval(lambda value: accepts(name, value), inside, kinds[0] is int)


def interval(accepts: Callable[[Any], bool], inside: float, is_whole: bool) -> str:
    """The numbers that are accepted around `inside`, in words; found by trying them."""
    low, low_is_in = _limit(accepts, inside, -_FAR, is_whole)
    high, high_is_in = _limit(accepts, inside, _FAR, is_whole)
    if low == high:  # no limit on either side, or nothing else to choose
        return ""
    if low is None:
        return f"at most {high}" if high_is_in else f"below {high}"
    start = f"{low}" if low_is_in else f"above {low}"
    if high is None:
        return f"{start} or more" if low_is_in else start
    return f"{start} to {'' if high_is_in else 'below '}{high}"


def _limit(accepts: Callable[[Any], bool], inside: float, far: float, is_whole: bool) -> tuple[str | None, bool]:
    """Where acceptance ends on the way to `far`, and whether that number itself is accepted; None: nowhere."""
    if accepts(int(far) if is_whole else float(far)):
        return None, False
    kind = int if is_whole else float
    good, reach = kind(inside), 1
    while accepts(bad := kind(inside + math.copysign(reach, far))):
        good, reach = bad, 10 * reach
    while abs(good - bad) > (1 if is_whole else 10**-_DIGITS / 2):
        middle = (good + bad) // 2 if is_whole else (good + bad) / 2
        good, bad = (middle, bad) if accepts(middle) else (good, middle)
    if is_whole:
        return str(good), True
    end = round(good, _DIGITS - 1)
    return f"{end:g}", accepts(end)


def _is_accepted(make: Callable[[], object]) -> bool:
    try:
        make()
    except ShardclipError:
        return False
    return True


def _with(recipe: Mapping[str, Any], place: Sequence[str], value: Any) -> dict[str, Any]:
    first, *rest = place
    return {**recipe, first: _with(recipe.get(first, {}), rest, value) if rest else value}


def _example_of(declared: Any) -> Any:
    return {int: 2, float: 0.5, Path: Path("name")}.get(declared, "name")
