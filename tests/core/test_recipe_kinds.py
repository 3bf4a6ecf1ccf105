"""A recipe that is given to another command is recognised for what it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.config import load_config
from core.errors import ConfigError
from core.recipe_kinds import KINDS, other_kind
from eval.config import EvalConfig
from shard_builder.config import BuildConfig
from trainer.config import TrainConfig

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FOLDERS = {"build": BuildConfig, "train": TrainConfig, "eval": EvalConfig}
EVERY = [(kind, path) for kind in FOLDERS for path in sorted((CONFIGS / kind).glob("*.yaml"))]


@pytest.mark.parametrize(("kind", "path"), EVERY, ids=lambda value: getattr(value, "stem", value))
def test_each_of_ours_is_known_by_the_other_commands(kind: str, path: Path) -> None:
    for other, config in FOLDERS.items():
        if other == kind:
            load_config(config, path)
        else:
            with pytest.raises(ConfigError, match=rf"this is an? .*recipe: shardclip {kind} {path}"):
                load_config(config, path)


def test_the_kinds_keys_are_keys_of_their_dataclasses() -> None:
    for config in FOLDERS.values():
        fields = set(config.__dataclass_fields__)
        assert KINDS[config.__name__].keys <= fields
        for other in FOLDERS.values():
            assert other is config or not KINDS[other.__name__].keys & fields, "a key of two kinds tells nothing"


def test_a_file_of_accelerate_is_recognised() -> None:
    path = Path(__file__).resolve().parents[2] / "launch/accelerate/gpu_8.yaml"
    with pytest.raises(ConfigError, match="shardclip train RECIPE --accelerate-config"):
        load_config(TrainConfig, path)


@pytest.mark.parametrize("mapping", [{}, {"optin": 1}, {"seed": 1, "run_dir": "x", "shards": "y"}, {"shards": "y"}])
def test_a_typo_is_not_another_kind(mapping: dict[str, object]) -> None:
    assert other_kind(mapping, "TrainConfig") is None
