"""Recipes: YAML and `key=value` overrides become a frozen dataclass, strictly.

Every YAML scalar is read as text and converted by the type that the dataclass declares, so `1e-3` is a number
where a float is wanted, `yes` and `012` stay text where text is wanted, and a typo stops the run by name.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import yaml

from core.errors import ConfigError, did_you_mean
from core.part_options import TABLE, option_types, owners_of
from core.recipe_kinds import other_kind

T = TypeVar("T")
_NULL = ("", "null", "none", "~")
_NULL_TEXT = ("null", "~")  # where text is wanted: "none" is a word there, as in weights: none
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


@dataclass(frozen=True)
class Choice:
    """A part chosen by name from a literal table, with its options: `loss: {name: infonce, label_smoothing: 0.1}`."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


def load_config(cls: type[T], recipe: Path | None, overrides: Sequence[str] = ()) -> T:
    """Read a recipe, apply `dotted.key=value` overrides and return `cls`.

    Raises:
        ConfigError: the file is missing or no YAML, or a key, type or value is wrong.
    """
    mapping = read_recipe(recipe) if recipe else {}
    if recipe and (kind := other_kind(mapping, cls.__name__)):
        raise ConfigError(f"{recipe}: this is {kind.what}: {kind.command.format(recipe)} ...")
    for override in overrides:
        _apply_override(mapping, override)
    return from_mapping(cls, mapping, str(recipe) if recipe else "command line")


def read_recipe(recipe: Path) -> dict[str, Any]:
    """The recipe's keys with every scalar as text."""
    if recipe.is_dir():
        inside = ", ".join(str(path) for path in sorted(recipe.glob("*.yaml"))[:5])
        raise ConfigError(f"{recipe}: is a folder: name a recipe{f', as {inside}' if inside else ''}.")
    if not recipe.is_file():
        siblings = [str(p) for p in recipe.parent.glob("*.yaml")] if recipe.parent.is_dir() else []
        raise ConfigError(f"{recipe}: no such recipe.{did_you_mean(str(recipe), siblings)}")
    try:
        mapping = yaml.load(recipe.read_text(encoding="utf-8"), Loader=_TextLoader)  # safe; scalars stay text
    except (UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{recipe}: cannot be read as text ({error}). Name a YAML file.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{recipe}: not valid YAML: {' '.join(str(error).split())}") from error
    if mapping is None:
        return {}
    if not isinstance(mapping, dict):
        raise ConfigError(f"{recipe}: a recipe is a list of `key: value` lines, this is a {type(mapping).__name__}.")
    return mapping


def from_mapping(cls: type[T], mapping: Mapping[str, Any], where: str) -> T:
    """Fill dataclass `cls` from nested text values; `where` opens every error."""
    hints = _hints_of(cls)  # type: ignore[arg-type]
    known = [f.name for f in fields(cls) if f.init]  # type: ignore[arg-type]
    moved: Mapping[str, str] = vars(cls).get("moved_keys", {})  # key of an older recipe -> what to write instead
    for key in mapping:
        if key in moved:
            raise ConfigError(f"{where}: the key '{key}' has moved: {moved[key]}.")
        if key not in known:
            remedy = _as_option(cls, mapping, str(key)) or did_you_mean(str(key), known)
            raise ConfigError(f"{where}: unknown key '{key}'.{remedy}")
    declared = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    values = {key: _of_field(declared[key], value, hints[key], f"{where}: {key}") for key, value in mapping.items()}
    missing = [f.name for f in fields(cls) if f.init and f.name not in values and _is_required(f)]  # type: ignore[arg-type]
    if missing:
        raise ConfigError(f"{where}: {cls.__name__} needs '{missing[0]}'. Add the line `{missing[0]}: ...`.")
    try:
        return cls(**values)
    except ConfigError as error:
        raise error if str(error).startswith(where) else ConfigError(f"{where}: {error}") from None


def convert(value: Any, declared: Any, where: str) -> Any:
    """Convert a YAML value (text, list or mapping) to the declared type."""
    origin, args = get_origin(declared), get_args(declared)
    if declared is Any:
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(value, args, where)
    if origin is Literal:
        return _convert_literal(value, args, where)
    if is_dataclass(declared) and isinstance(value, declared):  # type: ignore[arg-type]
        return value
    if declared is Choice:
        return _convert_choice(value, where)
    if is_dataclass(declared):
        if not isinstance(value, Mapping):
            raise _wrong_type(where, value, "`key: value` lines")
        return from_mapping(declared, value, where)  # type: ignore[arg-type]
    if declared in (str, Path) and _is_blank(value):
        raise _blank(where, declared)
    if _is_null(value, declared):
        return _nothing(declared, origin, where)
    if origin in (tuple, list) or declared in (tuple, list):
        return _convert_sequence(value, args, where)
    if origin in (dict, Mapping) or declared in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise _wrong_type(where, value, "`key: value` lines")
        value_type = args[1] if args else Any
        return {str(key): convert(item, value_type, f"{where}.{key}") for key, item in value.items()}
    return _convert_scalar(value, declared, where)


def to_mapping(config: Any) -> Any:
    """The config as plain YAML values; `from_mapping` gives the same config back."""
    if isinstance(config, Choice):
        return {"name": config.name, **to_mapping(dict(config.options))} if config.options else config.name
    if is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_mapping(getattr(config, f.name)) for f in fields(config) if f.init}
    if isinstance(config, Mapping):
        return {key: to_mapping(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [to_mapping(value) for value in config]
    return str(config) if isinstance(config, Path) else config


def dump_yaml(config: Any) -> str:
    """The resolved config as YAML text."""
    return yaml.safe_dump(to_mapping(config), sort_keys=False, allow_unicode=True)


def config_diff(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Lines `key: old -> new` for every value that differs."""
    lines: list[str] = []
    for key in [*old, *(k for k in new if k not in old)]:
        a, b, name = old.get(key), new.get(key), f"{prefix}{key}"
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += config_diff(a, b, f"{name}.")
        elif _as_text(a) != _as_text(b):
            lines.append(f"{name}: {_as_text(a)} -> {_as_text(b)}")
    return lines


def with_defaults(mapping: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """A saved config, with the defaults of the keys that were not known when it was saved.

    Args:
        config: a dataclass of the same kind, as it is now; anything else has no defaults.
    """
    filled = dict(mapping)
    if not is_dataclass(config) or isinstance(config, Choice):  # a part's options are its own business
        return filled
    for f in fields(config):
        if f.name in filled:
            if TABLE in f.metadata:  # options were saved as text once
                filled[f.name] = to_mapping(_of_field(f, filled[f.name], Choice, f.name))
            elif isinstance(filled[f.name], Mapping):
                filled[f.name] = with_defaults(filled[f.name], getattr(config, f.name))
        elif f.default is not dataclasses.MISSING:
            filled[f.name] = to_mapping(f.default)
        elif f.default_factory is not dataclasses.MISSING:
            filled[f.name] = to_mapping(f.default_factory())
    return filled


@cache
def _hints_of(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


class _TextLoader(yaml.SafeLoader):
    """A safe loader without implicit types (scalars stay text) and without silently repeated keys."""


_TextLoader.yaml_implicit_resolvers = {}


def _construct_mapping(loader: _TextLoader, node: yaml.MappingNode) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in mapping:
            raise yaml.constructor.ConstructorError(None, None, f"key '{key}' stands twice", key_node.start_mark)
        mapping[key] = loader.construct_object(value_node, deep=True)
    return mapping


_TextLoader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)


def _apply_override(mapping: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"command line: '{override}' is no override. Write key=value, as in optim.lr=3e-4.")
    try:
        value = yaml.load(text, Loader=_TextLoader) if text.strip() else ""
    except yaml.YAMLError:
        value = text
    if isinstance(value, dict) and any(":" in str(name) and not text for name, text in value.items()):
        raise ConfigError(f"command line: '{override}': a blank belongs behind each colon, as in {{name: mix}}.")
    *parents, last = key.split(".")
    for parent in parents:
        node = mapping.get(parent)
        if isinstance(node, str):
            node = {"name": node}  # `loss: infonce` with `loss.label_smoothing=0.1`
        mapping[parent] = dict(node) if node else {}
        mapping = mapping[parent]
    if isinstance(mapping.get(last), dict) and isinstance(value, str) and "name" in mapping[last]:
        value = {"name": value}  # another part chosen: its predecessor's options do not apply
    mapping[last] = value


def _is_required(f: dataclasses.Field[Any]) -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def _of_field(f: dataclasses.Field[Any], value: Any, declared: Any, where: str) -> Any:
    """A field's value; the options of a part of a table by the types that they have there."""
    converted = convert(_named(value, f.default), declared, where)
    if TABLE not in f.metadata or converted.name not in f.metadata[TABLE]:
        return converted
    types_of = option_types(f.metadata[TABLE][converted.name])
    options = {name: _by_type(value, types_of.get(name, Any)) for name, value in converted.options.items()}
    return Choice(converted.name, options)


def _by_type(value: Any, declared: Any) -> Any:
    try:
        return convert(value, declared, "")
    except ConfigError:
        return value  # as it is written: where the part is checked, the sentence names part, option and type


def _as_option(cls: type, mapping: Mapping[str, Any], key: str) -> str:
    """What to write for a key that is none, but is an option of a part that is named beside it; "": it is not."""
    for f in fields(cls):
        owners = owners_of(key, f.metadata)
        if owners:
            beside = _named(mapping.get(f.name, to_mapping(f.default)), f.default)
            chosen = beside["name"] if isinstance(beside, Mapping) else beside
            owner = chosen if chosen in owners else owners[0]
            return f" It is an option of {f.name}: {owner}. Write {f.name}: {{name: {owner}, {key}: {mapping[key]}}}."
    return ""


def _named(value: Any, usual: Any) -> Any:
    """`{label_smoothing: 0.1}` without a name is meant for the part that is used where none is named."""
    if isinstance(usual, Choice) and isinstance(value, Mapping) and "name" not in value:
        return {"name": usual.name, **value}
    return value


def _is_blank(value: Any) -> bool:
    return isinstance(value, str) and not value.strip()


def _blank(where: str, declared: Any, or_null: str = "") -> ConfigError:
    """`run_dir=$UNSET` must not be the folder one stands in, nor `start_from=$UNSET` no start at all."""
    return ConfigError(f"{where} is blank: {_spoken(declared)} is needed. Give one, or leave it out{or_null}.")


def _convert_union(value: Any, args: tuple[Any, ...], where: str) -> Any:
    if _is_blank(value) and (words := [a for a in args if a in (str, Path)]):
        raise _blank(where, words[0], " (null: none)")
    if type(None) in args and _is_null(value):
        return None
    problem: ConfigError | None = None
    for declared in (a for a in args if a is not type(None)):
        try:
            return convert(value, declared, where)
        except ConfigError as error:
            problem = problem or error
    raise problem or _wrong_type(where, value, "null")


def _is_null(value: Any, declared: Any = None) -> bool:
    """Whether a recipe says that there is no value; `declared` is the type of one that is needed."""
    return value is None or (isinstance(value, str) and value.lower() in (_NULL_TEXT if declared is str else _NULL))


def _nothing(declared: Any, origin: Any, where: str) -> Any:
    """What no value means where one is declared: an empty list or mapping, or an error."""
    if origin in (tuple, list) or declared in (tuple, list):
        args = get_args(declared)
        if not args or args[-1] is Ellipsis or origin is list:
            return ()
    if origin in (dict, Mapping) or declared in (dict, Mapping):
        return {}
    raise ConfigError(f"{where} has no value: {_spoken(declared)} is needed. Give one, or leave the line out.")


def _convert_literal(value: Any, args: tuple[Any, ...], where: str) -> Any:
    for option in args:
        if str(option) == str(value):
            return option
    raise ConfigError(f"{where} is '{value}'.{did_you_mean(str(value), [str(a) for a in args])}")


def _convert_choice(value: Any, where: str) -> Choice:
    if isinstance(value, str) and value:
        return Choice(value)
    if isinstance(value, Mapping) and isinstance(value.get("name"), str):
        return Choice(value["name"], {k: v for k, v in value.items() if k != "name"})
    raise _wrong_type(where, value, "a name, or `{name: ..., option: ...}`")


def _convert_sequence(value: Any, args: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")] if value else []
    if not isinstance(value, list | tuple):
        raise _wrong_type(where, value, "a list")
    if args and args[-1] is not Ellipsis:
        if len(args) != len(value):
            raise ConfigError(f"{where} has {len(value)} values, {len(args)} are needed.")
        return tuple(convert(item, kind, f"{where}[{i}]") for i, (item, kind) in enumerate(zip(value, args)))
    kind = args[0] if args else Any
    return tuple(convert(item, kind, f"{where}[{i}]") for i, item in enumerate(value))


def _convert_scalar(value: Any, declared: Any, where: str) -> Any:
    text = str(value)
    if isinstance(value, list | tuple | Mapping) or value is None:
        raise _wrong_type(where, value, _spoken(declared))
    if declared is bool:
        if text.lower() not in (*_TRUE, *_FALSE):
            raise _wrong_type(where, value, "true or false")
        return text.lower() in _TRUE
    if declared is str:
        return text
    try:
        if declared is int:
            return int(text.replace("_", ""), 10)
        if declared is float:
            number = float(text)
            if number != number:
                raise ValueError
            return number
        return declared(text)
    except (TypeError, ValueError):
        raise _wrong_type(where, value, _spoken(declared)) from None


def _spoken(declared: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path"}
    return names.get(declared, getattr(declared, "__name__", str(declared)))


def _wrong_type(where: str, value: Any, wanted: str) -> ConfigError:
    return ConfigError(f"{where} is {value!r}: {wanted} is needed.")


def _as_text(value: Any) -> str:
    return str(to_mapping(value))
