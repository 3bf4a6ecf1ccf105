"""A tower by family and name, and the model around it."""

from __future__ import annotations

import pytest
import torch
from encoders import encoder_of
from gloo import run
from torch import distributed, nn

from core.errors import ConfigError
from trainer.models.build import build_tower, rebuild_encoder
from trainer.models.config import ModelConfig
from trainer.models.towers.tower import Tower
from trainer.telemetry.flops import flops_per_image


def test_a_family_stands_before_the_colon_and_torchvision_needs_none() -> None:
    torch.manual_seed(0)
    bare = build_tower("resnet18", "none", 32)
    torch.manual_seed(0)
    named = build_tower("torchvision:resnet18", "none", 32)
    assert torch.equal(bare.module.conv1.weight, named.module.conv1.weight)


def test_an_unknown_family_is_told_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"family of model\.tower: unknown name 'tim'\. Did you mean 'timm'\?"):
        build_tower("tim:resnet18", "none", 32)


def test_a_description_rebuilds_a_model_of_another_image_size() -> None:
    model = encoder_of(ModelConfig(tower="vit_b_32", hidden_dim=4), embed_dim=4, image_size=64)
    again = rebuild_encoder(model.describe())
    again.load_state_dict(model.state_dict())
    assert again.describe()["image_size"] == 64
    older = {key: value for key, value in model.describe().items() if key != "image_size"}
    assert rebuild_encoder(older).describe()["image_size"] == 224


def count_as_a_run_does(rank: int = 0) -> list[float]:
    """The steps of `trainer.open_run` that a CPU can take, before and after batch norms are synchronised."""
    model = encoder_of(ModelConfig(tower="resnet18", freeze="layer1", hidden_dim=4), embed_dim=4, image_size=32)
    counts = [flops_per_image(model, (3, 32, 32))]
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model.to(memory_format=torch.channels_last)).train()
    modes = [part.training for part in model.modules()]
    assert distributed.is_initialized() and any(isinstance(part, nn.SyncBatchNorm) for part in model.modules())
    counts.append(flops_per_image(model, (3, 32, 32)))
    assert [part.training for part in model.modules()] == modes
    return counts


def test_flops_are_counted_with_synchronised_batch_norms_too() -> None:
    ((before, after),) = run(1, count_as_a_run_does)
    assert before == after > 0


class NormThenAct(nn.BatchNorm2d):
    """As timm's `BatchNormAct2d`."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.ReLU()


def test_batch_norms_that_hold_an_activation_are_not_synchronised(monkeypatch: pytest.MonkeyPatch) -> None:
    def family(name: str, weights: str, image_size: int) -> Tower:
        module = nn.Sequential(nn.Conv2d(3, 4, 3), NormThenAct(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return Tower(f"own:{name}", module, image_size)

    monkeypatch.setitem(build_tower.__globals__["TOWERS"], "own", family)
    assert encoder_of(ModelConfig(tower="own:a", hidden_dim=4), 4, 32).image_encoder.tower_dim == 4
    with pytest.raises(ConfigError, match=r"sync_batchnorm cannot be had with own:a: its batch norms \(such as 1\)"):
        encoder_of(ModelConfig(tower="own:a", hidden_dim=4, sync_batchnorm=True), 4, 32)
