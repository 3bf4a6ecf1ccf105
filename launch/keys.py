"""Every key of every recipe: `shardclip keys train`; `python -m launch.keys` writes docs/recipes.md.

Free of torch: a list of settings should not take seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import ConfigError, did_you_mean
from core.key_meanings import summary_of
from core.keys import Key, keys_of, options_of
from core.text_encoders import TEXT_ENCODERS
from eval.config import EvalConfig
from eval.evaluations import ALWAYS, EVALUATIONS
from eval.evaluations.retrieval import PROTOCOLS
from shard_builder.config import BuildConfig
from shard_builder.engines import ENGINES
from shard_builder.readers import READERS
from trainer.config import TrainConfig
from trainer.models.texts import TEXTS
from trainer.objectives import OBJECTIVES
from trainer.optim.optimizers import OPTIMIZERS
from trainer.optim.schedules import SCHEDULES
from trainer.samplers import SAMPLERS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "recipes.md"
# The families of `trainer/models/towers`, whose table loads torch; a test holds both against each other.
TOWER_FAMILIES = {
    "torchvision": "torchvision's classifiers by name, with or without `torchvision:` before it",
    "timm": "all of timm's models that give one vector for a picture, as `timm:mobilenetv3_small_050`",
}


@dataclass(frozen=True)
class Table:
    """The parts that a key chooses from, and what the program gives them itself."""

    parts: Mapping[str, Callable[..., Any]]
    given: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """A kind of recipe: its dataclass, an accepted example of it, and the keys that choose a part."""

    cls: type
    example: Mapping[str, Any]
    tables: Mapping[str, Table]
    names: Mapping[str, Mapping[str, str]]  # of keys that choose by name alone: name -> what it is


_TEXT_ENCODERS = Table(TEXT_ENCODERS, ("device",))
RECIPES = {
    "build": Recipe(
        BuildConfig,
        {"source": {"name": "jsonl", "file": "captions.jsonl"}, "out": "data/shards/mine"},
        {"source": Table(READERS, ("split",)), "text_encoder": _TEXT_ENCODERS, "engine": Table(ENGINES, ("workers",))},
        {},
    ),
    "train": Recipe(
        TrainConfig,
        {"run_dir": "runs/mine", "data": {"train": "data/shards/mine"}, "global_batch_size": 256},
        {
            "evaluations": Table(EVALUATIONS),
            "data.sampler": Table(SAMPLERS, ("epoch",)),
            "objective": Table(OBJECTIVES),
            "optim.optimizer": Table(OPTIMIZERS),
            "optim.schedule": Table(SCHEDULES),
            "model.text": Table(TEXTS),
        },
        {"model.tower": TOWER_FAMILIES},
    ),
    "eval": Recipe(
        EvalConfig,
        {"checkpoint": "runs/mine", "shards": "data/shards/mine"},
        {"text_encoder": _TEXT_ENCODERS, "evaluations": Table(EVALUATIONS)},
        {"protocols": {name: summary_of(protocol) for name, protocol in PROTOCOLS.items()}},
    ),
}


def recipe_of(verb: str) -> Recipe:
    """The kind of recipe that a verb takes.

    Raises:
        ConfigError: there is no such verb.
    """
    if verb not in RECIPES:
        raise ConfigError(f"keys: no verb '{verb}' takes a recipe.{did_you_mean(verb, RECIPES)}")
    return RECIPES[verb]


def recipe_keys(recipe: Recipe) -> list[Key]:
    """Its keys, those of nested parts of the recipe too."""
    names = {**{key: list(table.parts) for key, table in recipe.tables.items()}}
    return keys_of(recipe.cls, recipe.example, {**names, "protocols": list(recipe.names.get("protocols", ()))})


def spoken_keys(verb: str) -> str:
    """All keys of a recipe for a terminal: `key = default`, what it may be, what it means.

    Raises:
        ConfigError: there is no such verb.
    """
    recipe = recipe_of(verb)
    lines = [line for key in recipe_keys(recipe) for line in _lines(key, "")]
    for name, table in recipe.tables.items():
        for part, function in table.parts.items():
            lines += ["", f"{name}={part}: {summary_of(function)}"]
            lines += [line for key in options_of(function, table.given) for line in _lines(key, "  ")]
    for name, choices in recipe.names.items():
        lines += ["", *(f"{name}: {choice}: {what}" for choice, what in choices.items())]
    return "\n".join(lines)


def _lines(key: Key, indent: str) -> list[str]:
    value = "(has to be given)" if key.default is None else f"= {key.default}"
    kind = f"{key.type}: {key.allowed}" if key.allowed else key.type
    return [f"{indent}{key.name} {value}   [{kind}]", f"{indent}    {key.meaning}"]


def page() -> str:
    """docs/recipes.md."""
    return "\n".join([*_opening(), *(line for verb in RECIPES for line in _section(verb)), *_evaluations()]) + "\n"


def _opening() -> Iterator[str]:
    yield "# Every key of every recipe\n"
    yield (
        "Made from the dataclasses by `python -m launch.keys`; `shardclip keys build`, `keys train` and `keys eval` "
        "say the same in a terminal.\nA test keeps this page true. Recipes are YAML; on the command line a key is "
        "`key=value`, one below another `optim.lr=3e-4`.\n\nLimits are those that hold while every other key has its "
        "default. Where a default is missing the key has to be given. A *part* is\nchosen by name, with its options "
        "beside it: `objective: {name: infonce, label_smoothing: 0.1}`.\n"
    )


def _section(verb: str) -> Iterator[str]:
    recipe = recipe_of(verb)
    yield f"## {verb}\n\n{recipe.cls.__doc__}\n"
    yield from _table("key", recipe_keys(recipe))
    for name, table in recipe.tables.items():
        yield f"\n### {verb}: `{name}`\n"
        for part, function in table.parts.items():
            keys = options_of(function, table.given)
            yield f"`{part}`: {_cell(summary_of(function))}{'' if keys else ' It has no options.'}\n"
            if keys:
                yield from _table("option", keys)
                yield ""
    for name, choices in recipe.names.items():
        yield f"\n### {verb}: `{name}`\n\n| name | what |\n| --- | --- |"
        yield from (f"| `{choice}` | {_cell(what)} |" for choice, what in choices.items())
    yield ""


def _evaluations() -> Iterator[str]:
    yield "## Evaluations\n"
    always = ", ".join(f"`{name}`" for name in ALWAYS)
    yield f"What validation and `shardclip eval` measure where the data allow ({always}) or a recipe lists it in"
    yield "`evaluations`; `best_by` takes a figure as `val/NAME`. Figures are those of default options.\n"
    yield "| evaluation | needs | figures |\n| --- | --- | --- |"
    for name, evaluation in EVALUATIONS.items():
        usual = evaluation.__new__(evaluation)  # its defaults, without files that an option may name
        figures = ", ".join(f"`{figure}`" for figure in usual.figures())
        yield f"| `{name}` | {', '.join(evaluation.needs)} | {figures} |"


def _table(first: str, keys: Sequence[Key]) -> Iterator[str]:
    yield f"| {first} | type | default | unit | allowed | meaning |\n| --- | --- | --- | --- | --- | --- |"
    for key in keys:
        default = "" if key.default is None else f"`{key.default}`"
        cells = (f"`{key.name}`", key.type, default, key.unit, key.allowed, key.meaning)
        yield f"| {' | '.join(map(_cell, cells))} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
