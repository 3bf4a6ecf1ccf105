"""`shardclip keys` and docs/recipes.md say every key of every recipe, truly."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml

from core.config import Choice, convert, from_mapping, to_mapping
from core.keys import options_of
from core.text_encoders import TEXT_ENCODERS
from launch.keys import PAGE, RECIPES, TOWER_FAMILIES, page, recipe_keys

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def the_products_own_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests elsewhere in this process may have one of their own in the table."""
    monkeypatch.delitem(TEXT_ENCODERS, "fake", raising=False)


def test_the_page_is_what_the_code_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `python -m launch.keys`"


def names_of(cls: Any, prefix: str = "") -> set[str]:
    """Every key, found without the code under test."""
    hints, names = get_type_hints(cls), set()
    for f in fields(cls):
        kinds = [
            kind for kind in (hints[f.name], *get_args(hints[f.name])) if is_dataclass(kind) and kind is not Choice
        ]
        names |= set().union(*(names_of(kind, f"{prefix}{f.name}.") for kind in kinds))
        names |= set() if hints[f.name] in kinds else {prefix + f.name}
    return names


@pytest.mark.parametrize("verb", RECIPES)
def test_every_key_is_there_and_documented(verb: str) -> None:
    recipe = RECIPES[verb]
    keys = recipe_keys(recipe)
    assert {key.name for key in keys} == names_of(recipe.cls)
    parts = {n: f for table in recipe.tables.values() for n, f in table.parts.items()}
    options = [key for t in recipe.tables.values() for f in t.parts.values() for key in options_of(f, t.given)]
    assert parts and [key.name for key in [*keys, *options] if not key.meaning] == []


@pytest.mark.parametrize("verb", RECIPES)
def test_defaults_are_those_of_a_recipe_that_says_nothing(verb: str) -> None:
    recipe = RECIPES[verb]
    made = from_mapping(recipe.cls, recipe.example, "example")
    for key in recipe_keys(recipe):
        if key.default is None or key.name in recipe.example:
            continue
        value: Any = made
        hint: Any = recipe.cls
        for name in key.name.split("."):
            if value is None:  # X | None: of what a recipe leaves out
                value = next(kind for kind in get_args(hint) if is_dataclass(kind))("name")
                hint = type(value)
            value, hint = getattr(value, name), get_type_hints(hint)[name]
        written = yaml.load(key.default, Loader=yaml.BaseLoader) if key.default else ""
        assert rounded(to_mapping(convert(written, hint, key.name))) == rounded(to_mapping(value)), key.name


def rounded(value: Any) -> Any:
    """Numbers to six digits, as they are shown."""
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


@pytest.mark.parametrize("verb", RECIPES)
def test_every_choice_of_a_part_is_a_table_of_the_page(verb: str) -> None:
    recipe, hints = RECIPES[verb], {key.name: key.type for key in recipe_keys(RECIPES[verb])}
    assert set(recipe.tables) == {name for name, kind in hints.items() if "part" in kind}


def test_the_families_of_towers_are_those_there_are() -> None:
    from trainer.models.towers import TOWERS

    assert set(TOWER_FAMILIES) == set(TOWERS)


def test_keys_are_listed_quickly_and_without_torch() -> None:
    program = (
        "import sys; from launch.cli import app; sys.argv = ['shardclip', 'keys', 'train']\n"
        "try:\n    app()\nfinally:\n    print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.endswith("False\n"), done.stderr
    assert "optim.lr = 0.0005   [number: above 0]\n    peak, after warm-up\n" in done.stdout
    assert "objective=siglip:" in done.stdout and "[0" not in done.stdout.split("crop_scale")[0]


def test_a_verb_without_a_recipe_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "launch.cli", "keys", "trian"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "shardclip: keys: no verb 'trian' takes a recipe. Did you mean 'train'?\n"
