"""Parts chosen by name from a literal table: checked before anything starts, and built with their options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from core.config import Choice, convert
from core.errors import ConfigError, did_you_mean
from core.part_options import option_types


def build(table: Mapping[str, Callable[..., Any]], choice: Choice, kind: str, **given: Any) -> Any:
    """Call the part that `choice` names with its options (converted by its annotations) and what the caller gives.

    Raises:
        ConfigError: no such part, or the part has no such option.
    """
    part, options = _resolve(table, choice, kind, given)
    return part(**options, **given)


def check(table: Mapping[str, Callable[..., Any]], choice: Choice, kind: str, given: Iterable[str] = ()) -> None:
    """Raise what `build` would raise about names and options, before anything is started."""
    _resolve(table, choice, kind, dict.fromkeys(given))


def settings(
    table: Mapping[str, Callable[..., Any]], choice: Choice, kind: str, given: Iterable[str] = ()
) -> dict[str, Any]:
    """A part's name and all its options, converted, with the defaults of those that the recipe leaves out.

    Equal settings mean the same, however they were written.
    """
    given = set(given)
    part, options = _resolve(table, choice, kind, dict.fromkeys(given))
    parameters = {n: p for n, p in inspect.signature(part).parameters.items() if n not in given}
    return {"name": choice.name, **{name: options.get(name, p.default) for name, p in parameters.items()}}


def _resolve(
    table: Mapping[str, Callable[..., Any]], choice: Choice, kind: str, given: Mapping[str, Any]
) -> tuple[Callable[..., Any], dict[str, Any]]:
    if choice.name not in table:
        raise ConfigError(f"{kind}: unknown name '{choice.name}'.{did_you_mean(choice.name, table)}")
    part = table[choice.name]
    hints = option_types(part)
    parameters = {n: p for n, p in inspect.signature(part).parameters.items() if n not in given}
    for option in choice.options:
        if option not in parameters:
            remedy = did_you_mean(option, parameters) or " It has none."
            raise ConfigError(f"{kind} '{choice.name}': unknown option '{option}'.{remedy}")
    for name, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and name not in choice.options:
            raise ConfigError(f"{kind} '{choice.name}' needs '{name}'. Add the line `{name}: ...`.")
    options = {
        name: convert(value, hints.get(name, Any), f"{kind} '{choice.name}': {name}")
        for name, value in choice.options.items()
    }
    return part, options
