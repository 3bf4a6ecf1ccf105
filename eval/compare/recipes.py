"""What differs in how runs were made: their recipes, machines and data. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_ALWAYS_DIFFER = ("run_dir",)  # the name of a run
_OF_THE_START = ("started", "command")  # not of the machine
ABSENT = "not said"


def differing_keys(
    configs: Sequence[Mapping[str, Any]], left_out: Sequence[str] = _ALWAYS_DIFFER
) -> list[dict[str, Any]]:
    """`{"key": "optim.lr", "values": ["0.001", "0.0002"]}` for every key that differs, in their order.

    A config of which nothing is known (of a tower by itself, or a lost run) differs in nothing.
    """
    flat = [_flat(config) for config in configs]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    differ = [key for key in keys if key not in left_out and len({one.get(key, ABSENT) for one in flat if one}) > 1]
    return [{"key": key, "values": [one.get(key, ABSENT) for one in flat]} for key in differ]


def differing_environment(environments: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The same of hardware, versions and commit."""
    return differing_keys(environments, _OF_THE_START)


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping) and item:
            if "name" in item:  # a part with options: `objective: infonce` has none
                found[name] = _spoken(item["name"])
            found |= _flat({option: value for option, value in item.items() if option != "name"}, f"{name}.")
        else:
            found[name] = _spoken(item)
    return found


def _spoken(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_spoken(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(_spoken, value)) or "none"
    return "none" if value in (None, "") else str(value)
