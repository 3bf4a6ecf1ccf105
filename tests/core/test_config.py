"""Recipes are read strictly and converted by declared type; every mistake is named."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import yaml

from core.config import (
    Choice,
    config_diff,
    dump_yaml,
    from_mapping,
    load_config,
    read_recipe,
    to_mapping,
    with_defaults,
)
from core.errors import ConfigError
from core.part_options import one_of
from core.parts import build


@dataclass(frozen=True)
class Optim:
    lr: float = 5e-4
    steps: int | None = None
    betas: tuple[float, float] = (0.9, 0.98)


@dataclass(frozen=True)
class Config:
    run_dir: Path
    name: str = "x"
    fast: bool = False
    shards: tuple[str, ...] = ()
    fit: Literal["crop", "pad"] = "crop"
    loss: Choice = Choice("infonce")
    optim: Optim = field(default_factory=Optim)

    def __post_init__(self) -> None:
        if self.name == "bad":
            raise ConfigError("name is 'bad': choose another.")


def recipe(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def test_scalars_are_converted_by_the_declared_type(tmp_path: Path) -> None:
    text = "run_dir: 012\nname: yes\nfast: on\nshards: [a, 7]\noptim: {lr: 1e-3, steps: 0012, betas: [0.5, 1]}\n"
    config = load_config(Config, recipe(tmp_path, text))
    assert config == Config(Path("012"), "yes", True, ("a", "7"), optim=Optim(1e-3, 12, (0.5, 1.0)))


def test_overrides_reach_nested_keys_and_choices(tmp_path: Path) -> None:
    path = recipe(tmp_path, "run_dir: a\nloss: {name: infonce, block_size: 4}\n")
    config = load_config(Config, path, ["optim.lr=3e-4", "loss.block_size=8", "shards=a,b", "optim.steps=null"])
    assert config.optim.lr == 3e-4 and config.shards == ("a", "b") and config.optim.steps is None
    assert config.loss == Choice("infonce", {"block_size": "8"})
    assert load_config(Config, path, ["loss=siglip"]).loss == Choice("siglip")  # another part: no inherited options


@pytest.mark.parametrize("nothing", ["null", "~", "none", ""])
def test_no_value_is_an_empty_list_and_never_one_of_that_name(tmp_path: Path, nothing: str) -> None:
    path = recipe(tmp_path, f"run_dir: a\nshards: {nothing}\noptim: {{steps: {nothing}}}\n")
    config = load_config(Config, path)
    assert config.shards == () and config.optim.steps is None
    assert load_config(Config, path, [f"shards={nothing}"]).shards == ()


def test_none_is_a_word_where_text_is_wanted(tmp_path: Path) -> None:
    assert load_config(Config, recipe(tmp_path, "run_dir: a\nname: none\n")).name == "none"  # as in weights: none


def test_the_resolved_config_reads_back_equal(tmp_path: Path) -> None:
    config = Config(Path("runs/a"), shards=("x",), loss=Choice("infonce", {"label_smoothing": 0.1}))
    again = load_config(Config, recipe(tmp_path, dump_yaml(config)))
    assert to_mapping(again)["optim"] == to_mapping(config)["optim"] and again.shards == config.shards
    assert config_diff(to_mapping(config), to_mapping(again)) == []


def part(
    rate: float = 0.5, sizes: tuple[int, ...] = (), is_on: bool = False, word: str = "", *, epoch: int = 0
) -> None:
    """A part with an option of each kind; `epoch` is given by the program."""


@dataclass(frozen=True)
class WithPart:
    """A recipe that names a part of a table."""

    part: Choice = field(default=Choice("one"), metadata=one_of({"one": part, "other": lambda: None}, given=["epoch"]))


def test_options_of_a_part_are_saved_as_what_they_mean(tmp_path: Path) -> None:
    written = {"rate": "1e-1", "sizes": "3,4", "is_on": "yes", "word": "012"}
    config = from_mapping(WithPart, {"part": written}, "t")
    assert config.part == Choice("one", {"rate": 0.1, "sizes": (3, 4), "is_on": True, "word": "012"})
    assert yaml.safe_load(dump_yaml(config)) == {
        "part": {"name": "one", "rate": 0.1, "sizes": [3, 4], "is_on": True, "word": "012"}
    }
    assert load_config(WithPart, recipe(tmp_path, dump_yaml(config))) == config
    before = with_defaults({"part": {"name": "one", **written, "sizes": ["3", "4"]}}, config)  # saved as text
    assert config_diff(before, to_mapping(config)) == []
    assert config_diff(before, to_mapping(from_mapping(WithPart, {"part": {**written, "rate": "0.2"}}, "t"))) == [
        "part.rate: 0.1 -> 0.2"
    ]
    odd = {"name": "one", "rate": "fast", "rat": "1"}
    assert from_mapping(WithPart, {"part": odd}, "t").part.options == {"rate": "fast", "rat": "1"}  # the part says so
    assert from_mapping(WithPart, {"part": "three"}, "t").part == Choice("three")


def test_an_option_in_the_place_of_a_key_is_shown_its_own() -> None:
    for mapping in ({"rate": "3"}, {"part": "other", "rate": "3"}):
        with pytest.raises(ConfigError) as caught:
            from_mapping(WithPart, mapping, "t")
        sentence = "t: unknown key 'rate'. It is an option of part: one. Write part: {name: one, rate: 3}."
        assert str(caught.value) == sentence
    with pytest.raises(ConfigError, match="unknown key 'epoch'. Known: part"):
        from_mapping(WithPart, {"epoch": "3"}, "t")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("run_dir: a\noptim: {lrr: 1}", "optim: unknown key 'lrr'. Did you mean 'lr'?"),
        ("run_dir: a\noptim: {lr: fast}", "optim: lr is 'fast': a number is needed."),
        ("run_dir: a\noptim: {steps: 1.5}", "steps is '1.5': a whole number is needed."),
        ("run_dir: a\nfast: maybe", "fast is 'maybe': true or false is needed."),
        ("run_dir: a\nfit: crob", "fit is 'crob'. Did you mean 'crop'?"),
        ("run_dir: a\noptim: {betas: [1]}", "betas has 1 values, 2 are needed."),
        ("run_dir: a\noptim: 3", "optim is '3'"),
        ("name: a", "Config needs 'run_dir'"),
        ("run_dir: a\nname: bad", "name is 'bad': choose another."),
        ("run_dir: a\nrun_dir: b", "key 'run_dir' stands twice"),
        ("run_dir: [a", "not valid YAML"),
        ("- a", "a recipe is a list of `key: value` lines"),
        ("run_dir: null", "run_dir has no value: a path is needed."),
        ("run_dir:", "run_dir is blank: a path is needed."),
        ("run_dir: ' '", "run_dir is blank: a path is needed."),
        ("run_dir: a\nshards: [x, '']", "shards[1] is blank: text is needed."),
        ("run_dir: a\nname: null", "name has no value: text is needed. Give one, or leave the line out."),
        ("run_dir: a\nshards: [x, null]", "shards[1] has no value: text is needed."),
        ("run_dir: a\noptim: {lr: ~}", "lr has no value: a number is needed."),
        ("run_dir: a\noptim: {betas: null}", "betas has no value"),
    ],
)
def test_a_wrong_recipe_is_named(tmp_path: Path, text: str, sentence: str) -> None:
    path = recipe(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        load_config(Config, path)
    assert sentence in str(error.value) and str(path) in str(error.value)


def test_a_missing_recipe_names_its_nearest_neighbour(tmp_path: Path) -> None:
    recipe(tmp_path, "name: a")
    with pytest.raises(ConfigError, match=r"no such recipe. Did you mean '.*recipe.yaml'"):
        read_recipe(tmp_path / "recipes.yaml")


def test_an_override_without_equals_is_refused() -> None:
    with pytest.raises(ConfigError, match="'optim.lr' is no override"):
        load_config(Config, None, ["optim.lr"])


def _part(width: int = 3, *, given: float) -> tuple[int, float]:
    return width, given


def test_build_converts_options_and_names_wrong_ones() -> None:
    table = {"part": _part}
    assert build(table, Choice("part", {"width": "4"}), "kind", given=2.0) == (4, 2.0)
    for choice, sentence in (
        (Choice("prat"), "kind: unknown name 'prat'. Did you mean 'part'?"),
        (Choice("part", {"widht": 1}), "unknown option 'widht'. Did you mean 'width'?"),
        (Choice("part", {"width": "x"}), "width is 'x': a whole number is needed."),
    ):
        with pytest.raises(ConfigError) as error:
            build(table, choice, "kind", given=2.0)
        assert sentence in str(error.value)


def test_config_diff_names_what_changed() -> None:
    old = to_mapping(from_mapping(Config, {"run_dir": "a", "optim": {"lr": "1"}}, "t"))
    new = to_mapping(from_mapping(Config, {"run_dir": "a", "optim": {"lr": "2"}}, "t"))
    assert config_diff(old, new) == ["optim.lr: 1.0 -> 2.0"]


def test_a_key_that_is_newer_than_a_saved_config_had_its_default_then() -> None:
    new = from_mapping(Config, {"run_dir": "a", "loss": {"name": "infonce", "block_size": "8"}}, "t")
    whole = to_mapping(new)
    old = {
        **{key: value for key, value in whole.items() if key not in ("fit", "shards")},
        "optim": {"lr": 1.0},
    }
    filled = with_defaults(old, new)
    assert filled == {**whole, "optim": {**whole["optim"], "lr": 1.0}}
    changed = config_diff(filled, {**whole, "fit": "pad"})
    assert sorted(changed) == ["fit: crop -> pad", "optim.lr: 1.0 -> 0.0005"]
    assert with_defaults({"a": 1}, {"b": 2}) == {"a": 1}


@dataclass(frozen=True)
class Renamed:
    moved_keys: ClassVar[dict[str, str]] = {"old": "write `new:` in its place"}
    new: int = 0


def test_a_key_that_has_moved_says_where_to(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="recipe.yaml: the key 'old' has moved: write `new:` in its place."):
        load_config(Renamed, recipe(tmp_path, "old: 3\n"))
    assert load_config(Renamed, recipe(tmp_path, "new: 3\n")) == Renamed(3)
