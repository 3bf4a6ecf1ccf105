"""Freezing: stages in the order they run, for towers of every family."""

from __future__ import annotations

import pytest
from encoders import encoder_of

from core.errors import ConfigError
from trainer.models.build import build_tower
from trainer.models.config import ModelConfig
from trainer.models.freeze import stages


def stages_of(tower: str, image_size: int = 32) -> list[str]:
    return stages(build_tower(tower, "none", image_size).module)


def test_stages_are_listed_in_the_order_they_run() -> None:
    assert stages_of("resnet18") == ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4"]
    assert stages_of("mobilenet_v2") == [f"features.{i}" for i in range(19)]
    assert stages_of("shufflenet_v2_x0_5") == ["conv1", "stage2", "stage3", "stage4", "conv5"]


def test_a_sequence_of_stages_is_opened_up_in_timms_towers() -> None:
    pytest.importorskip("timm")
    assert stages_of("timm:mobilenetv3_small_050") == [
        "conv_stem", "bn1", *[f"blocks.{i}" for i in range(6)], "conv_head",
    ]  # fmt: skip
    assert stages_of("timm:vit_tiny_patch16_224", 64)[:3] == ["patch_embed", "blocks.0", "blocks.1"]


def test_an_unknown_stage_is_told_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match=r"no stage 'layer_2'\. Did you mean 'layer2'\?"):
        encoder_of(ModelConfig(tower="resnet18", freeze="layer_2"), embed_dim=4, image_size=32)
