"""The doctor asks the objective what it needs, and says what a run would stumble over."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from column_folders import add_column
from rich.console import Console
from shard_sets import make_shard_set

from core.config import from_mapping
from core.errors import ConfigError
from core.manifest import load_manifest, save_manifest
from launch.doctor import (
    CHECKS,
    GIB,
    Examined,
    check_columns,
    check_memory,
    check_shards,
    check_validation,
    check_views,
    check_weights,
    findings_of,
    logits_block,
    state_bytes,
)
from launch.early import mistakes
from launch.examine import examine
from trainer.config import TrainConfig
from trainer.run.recipe_model import recipe_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, count in (("train", 24), ("val", 12)):
        url = make_shard_set(tmp_path / split, count, num_captions=3, split=split, source=split)
        add_column(url, "labels", (np.arange(count) % 3).astype("<i4"), classes=("a", "b", "c"))
    return tmp_path


def config_of(folder: Path, objective: Any = "nt_xent", **settings: Any) -> TrainConfig:
    data = {"train": str(folder / "train"), "val": str(folder / "val"), "num_workers": 0, **settings.pop("data", {})}
    values = {"run_dir": folder / "run", "data": data, "global_batch_size": 8, "objective": objective}
    return from_mapping(TrainConfig, {**values, "model": {"tower": "shufflenet_v2_x0_5"}, **settings}, "test")


def without_captions(folder: Path) -> None:
    from dataclasses import replace

    for split in ("train", "val"):
        save_manifest(replace(load_manifest(str(folder / split)), text_encoder=None), str(folder / split))


def test_an_objective_of_pictures_alone_is_not_asked_for_captions(folder: Path) -> None:
    without_captions(folder)
    config = config_of(folder)
    findings = [
        *check_shards(Examined(config, 1)),
        *check_weights(Examined(config, 1)),
        *check_validation(Examined(config, 1)),
    ]
    assert {f.level for f in findings} == {"ok"}
    said = " ".join(f.what for f in findings)
    assert "caption" not in said and "validation measures val/knn/accuracy, val/knn1/accuracy" in said
    assert "k-NN: among 24 of 24 labelled training samples" in said


def test_a_validation_that_measures_nothing_is_refused_and_an_absent_one_is_a_warning(folder: Path) -> None:
    bare = make_shard_set(folder / "bare", 5)
    with pytest.raises(ConfigError, match=r"has no class labels, .* set data.val=\[\]"):
        list(check_validation(Examined(config_of(folder, data={"val": bare}), 1)))
    (finding,) = check_validation(Examined(config_of(folder, data={"val": ()}), 1))
    assert finding.level == "warning" and "k-NN accuracy is not followed" in finding.repair
    (finding,) = check_validation(Examined(config_of(folder, "infonce", data={"val": ()}), 1))
    assert "recall is not followed" in finding.repair
    unlabelled = config_of(folder, data={"train": bare}, global_batch_size=4)
    assert [f.level for f in check_validation(Examined(unlabelled, 1))] == ["ok", "warning"]
    small = config_of(folder, "infonce", evaluations=[{"name": "calibration", "folds": 30}])
    (finding,) = findings_of(check_validation, Examined(small, 1))
    assert finding.level == "error" and "of 12 different images or classes, fewer than folds (30)" in finding.what
    with pytest.raises(ConfigError, match="best_by: validation measures no 'val/los'. Did you mean 'val/loss'"):
        list(check_validation(Examined(config_of(folder, "infonce", best_by="val/los"), 1)))


@pytest.mark.parametrize(
    ("objective", "block"),
    [
        ("infonce", (8, 8)),
        ({"name": "infonce", "block_size": 4}, (4, 8)),
        ({"name": "infonce", "captions": "all", "block_size": 0}, (8, 24)),
        ("nt_xent", (8, 16)),
        ({"name": "supcon", "views": 1}, (8, 8)),
    ],
)
def test_memory_of_the_logits_counts_views_and_captions(folder: Path, objective: Any, block: tuple[int, int]) -> None:
    config = config_of(folder, objective, data={"columns": {"label": "labels"}})
    assert logits_block(config, 1) == block
    assert f"blocks of {block[0]} x {block[1]}," in next(iter(check_memory(Examined(config, 1)))).what


@pytest.mark.parametrize(
    ("model", "optim", "copies"),
    [
        ({"freeze": "tower"}, {}, 1),
        ({"freeze": "nothing"}, {}, 3),
        ({"freeze": "nothing"}, {"ema_decay": 0.9}, 4),
        ({"freeze": "nothing"}, {"optimizer": "sgd", "weight_decay": 0.0}, 2),
        ({"freeze": "tower", "thaw": {"5": "layer1", "9": "nothing"}}, {}, 3),
    ],
)
def test_memory_counts_the_copy_that_is_saved(
    folder: Path, model: dict[str, Any], optim: dict[str, Any], copies: int
) -> None:
    config = config_of(folder, "infonce", model={"tower": "resnet18", **model}, optim=optim)
    examined = Examined(config, 1)
    tower = 11.2e6 * 4  # bytes; its head is some hundred thousand
    held = state_bytes(config, examined.model()[0])
    assert copies * tower < held < 1.15 * copies * tower
    finding = list(check_memory(examined))[1]
    assert f"about {2 * held / GIB:.2f} GiB of" in finding.what and finding.level == "ok"


def test_a_frozen_tower_that_nothing_has_taught_is_a_warning(folder: Path) -> None:
    frozen = {"tower": "shufflenet_v2_x0_5", "freeze": "tower"}
    (_, warning) = check_weights(Examined(config_of(folder, model=frozen), 1))
    assert warning.level == "warning" and "model.weights=none" in warning.what and "thaw={}" in warning.repair
    assert [found.level for found in check_weights(Examined(config_of(folder), 1))] == ["ok"]


def test_views_that_hardly_differ_are_a_warning(folder: Path) -> None:
    (weak,) = check_views(Examined(config_of(folder, augment={"crop_scale": (0.9, 1.0)}), 1))
    assert weak.level == "warning" and "crops keep at least 90 %" in weak.what and "colours change with" in weak.what
    (strong,) = check_views(Examined(config_of(folder, augment={"crop_scale": (0.08, 1.0), "jitter": 0.8}), 1))
    assert strong.level == "ok"
    assert list(check_views(Examined(config_of(folder, "infonce"), 1))) == []


def test_the_column_that_an_objective_needs_is_named(folder: Path) -> None:
    first = next(iter(check_columns(Examined(config_of(folder, "supcon", data={"columns": {"label": "labels"}}), 1))))
    assert first.level == "ok" and first.what == "supcon needs 'label': column labels (labels)"
    add_column(str(folder / "train"), "features.x", np.zeros((24, 2), "<f4"))
    first = next(
        iter(check_columns(Examined(config_of(folder, "supcon", data={"columns": {"label": "features.x"}}), 1)))
    )
    assert first.level == "error" and "a number for each sample is needed" in first.what


def test_what_keeps_several_checks_from_their_work_is_said_once(folder: Path) -> None:
    config = config_of(folder, model={"tower": "resnet18", "weights": "IMAGENET1K_V9"}, optim={"warmup_steps": 1})
    shown = io.StringIO()
    assert examine(config, None, Console(file=shown, width=1000))
    assert shown.getvalue().count("IMAGENET1K_V9") == 1


def test_nothing_is_cut_and_a_repair_can_be_copied(folder: Path) -> None:
    weak = config_of(folder, augment={"crop_scale": (0.9, 1.0)}, optim={"warmup_steps": 1})
    (finding,) = check_views(Examined(weak, 1))
    shown = io.StringIO()
    assert not examine(weak, 1, Console(file=shown, width=40))
    lines = shown.getvalue().splitlines()
    assert f"warning  {finding.what}" in lines and f"         {finding.repair}" in lines
    wrong = config_of(folder, optim={"warmup_steps": 500})  # found without torch
    shown = io.StringIO()
    assert examine(wrong, 1, Console(file=shown, width=40))
    assert shown.getvalue().splitlines()[:-1] == [f"error    {sentence}" for sentence in mistakes(wrong, 1)]


@pytest.mark.parametrize("weights", ["none", "IMAGENET1K_V9"])
def test_the_model_is_built_once_whether_it_can_be_or_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch, weights: str
) -> None:
    built: list[TrainConfig] = []

    def counted(config: TrainConfig, *given: Any) -> Any:
        built.append(config)
        return recipe_model(config, *given)

    monkeypatch.setattr("launch.doctor.recipe_model", counted)
    config = config_of(folder, model={"tower": "resnet18", "weights": weights}, optim={"warmup_steps": 1})
    examined = Examined(config, 1)
    levels = {finding.level for check in CHECKS for finding in findings_of(check, examined)}
    assert len(built) == 1 and ("error" in levels) == (weights != "none")
