"""A tower by family and name, and the model around it."""

from __future__ import annotations

import pytest
import torch

from core.errors import ConfigError
from trainer.models import ModelConfig, build_model, rebuild_model
from trainer.models.build import build_tower


def test_a_family_stands_before_the_colon_and_torchvision_needs_none() -> None:
    torch.manual_seed(0)
    bare = build_tower("resnet18", "none", 32)
    torch.manual_seed(0)
    named = build_tower("torchvision:resnet18", "none", 32)
    assert torch.equal(bare.module.conv1.weight, named.module.conv1.weight)


def test_an_unknown_family_is_told_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"family of model\.tower: unknown name 'torchvison'\. Did you mean 'torchvision'\?"):
        build_tower("torchvison:resnet18", "none", 32)


def test_a_description_rebuilds_a_model_of_another_image_size() -> None:
    model = build_model(ModelConfig(tower="vit_b_32", hidden_dim=4), embed_dim=4, image_size=64)
    again = rebuild_model(model.describe())
    again.load_state_dict(model.state_dict())
    assert again.describe()["image_size"] == 64
    older = {key: value for key, value in model.describe().items() if key != "image_size"}
    assert rebuild_model(older).describe()["image_size"] == 224
