"""The build recipes: each opens with its command and fits the readers' options."""

from pathlib import Path

import pytest

from core import parts
from core.config import Choice, read_recipe
from core.errors import ConfigError
from shard_builder.readers import READERS

RECIPES = sorted((Path(__file__).parents[3] / "configs/build").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_opens_with_its_command_and_names_a_reader_with_its_options(recipe: Path) -> None:
    first_lines = recipe.read_text().split("\n\n")[0]
    assert all(line.startswith("#") for line in first_lines.splitlines())
    assert f"shardclip build configs/build/{recipe.name}\n" in first_lines
    assert "Expect" in first_lines
    source = dict(read_recipe(recipe)["source"])
    parts.check(READERS, Choice(source.pop("name"), source), "source", given=["split"])


def test_a_mistyped_option_is_named_with_the_nearest_right_one() -> None:
    with pytest.raises(ConfigError, match=r"Did you mean 'captions'\?"):
        parts.check(READERS, Choice("coco", {"captoins": "x.json"}), "source", given=["split"])


def test_karpathys_file_can_replace_a_recipes_captions(tmp_path: Path) -> None:
    # As `source.captions=null source.karpathy=...` on the command line: the reader sees None, not the text "null".
    choice = Choice("coco", {"images": str(tmp_path), "captions": "null", "karpathy": str(tmp_path / "none.json")})
    with pytest.raises(ValueError, match=r"none\.json: no such file\. Set source\.karpathy"):
        parts.build(READERS, choice, "source", split="train")


def test_templates_are_a_list_in_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.jpg").write_bytes(b"")
    choice = Choice("image_folder", {"folder": str(tmp_path), "templates": ["a {}", "the {}"]})
    result = parts.build(READERS, choice, "source", split="train")
    assert result.records[0].captions == ("a cat", "the cat")
