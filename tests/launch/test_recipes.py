"""Every recipe in configs/ is valid, resolves to itself, opens with its command, and fits those before and after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from core.config import dump_yaml, load_config
from eval.config import EvalConfig
from shard_builder.config import BuildConfig
from trainer.config import TrainConfig

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
KINDS: dict[str, Any] = {"build": BuildConfig, "train": TrainConfig, "eval": EvalConfig}
RECIPES = [path for kind in KINDS for path in sorted((CONFIGS / kind).glob("*.yaml"))]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_recipe_loads_and_opens_with_its_command(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONFIGS.parent)
    config = load_config(KINDS[path.parent.name], path)
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(dump_yaml(config))
    assert load_config(KINDS[path.parent.name], resolved) == config
    opening = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any("shardclip" in line for line in opening)


def test_training_reads_what_building_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONFIGS.parent)
    built = {load_config(BuildConfig, path).out for path in RECIPES if path.parent.name == "build"}
    for path in RECIPES:
        if path.parent.name == "train" and path.stem != "demo":  # the demo names its own folders
            data = load_config(TrainConfig, path).data
            assert {*data.train, *data.val} <= built, path
        if path.parent.name == "eval" and path.stem != "demo":
            assert set(load_config(EvalConfig, path).shards) <= built, path
