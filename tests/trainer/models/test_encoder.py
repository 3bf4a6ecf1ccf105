"""The encoder around a tower, what of the tower is frozen, and the objective's scalars beside it."""

from __future__ import annotations

import math

import pytest
import torch
from encoders import encoder_of
from torch import nn

from core.errors import ConfigError
from trainer.models.build import build_encoder, rebuild_encoder
from trainer.models.config import ModelConfig
from trainer.models.trained import TrainedModel
from trainer.objectives.infonce import InfoNCE
from trainer.objectives.nt_xent import NTXent
from trainer.pictures.normalization import HALF

TINY = ModelConfig(tower="mobilenet_v3_small", hidden_dim=16)


def images(batch: int = 2, size: int = 32) -> torch.Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_features_are_unit_vectors_in_float32_even_under_autocast() -> None:
    model = encoder_of(TINY, embed_dim=24, image_size=32).eval()
    with torch.autocast("cpu", torch.bfloat16):
        features, scalars = TrainedModel(model, InfoNCE())({"image": images()})
    assert features["image"].shape == (2, 24)
    assert features["image"].dtype == scalars["scale"].dtype == torch.float32
    torch.testing.assert_close(features["image"].norm(dim=1), torch.ones(2))
    assert scalars["scale"].item() == pytest.approx(1 / 0.07)
    assert torch.equal(model.image_features(images()), model({"image": images()})["image"])


def test_two_views_go_through_together_and_come_back_by_name() -> None:
    model = encoder_of(TINY, embed_dim=8, image_size=32).eval()
    one, other = images(3), images(3).flip(0)
    features = model({"image": one, "image2": other})
    torch.testing.assert_close(features["image"], model.image_features(one))
    torch.testing.assert_close(features["image2"], model.image_features(other))


def test_a_head_that_is_thrown_away_plays_no_part_in_evaluation() -> None:
    model = build_encoder(ModelConfig(tower="resnet18"), NTXent(), None, 32).eval()
    assert model.image_encoder.head[1].out_features == 2048 and model.describe()["embed_dim"] == 128
    features = model.image_features(images())
    assert features.shape == (2, 512)
    tower = model.image_encoder.tower_features(images())
    torch.testing.assert_close(features, tower / tower.norm(dim=1, keepdim=True))
    again = rebuild_encoder(model.describe())
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.image_features(images()), features)


def test_logit_scale_stays_between_one_and_its_maximum() -> None:
    model = TrainedModel(encoder_of(TINY, embed_dim=8, image_size=32), InfoNCE())
    for stored, expected in ((10.0, 100.0), (-3.0, 1.0), (math.log(50), 50.0)):
        model.learned["logit_scale"].data.fill_(stored)
        model.clamp()
        assert model.scalars()["scale"].item() == pytest.approx(expected)


def test_the_head_is_two_layers_as_wide_as_the_tower_unless_told() -> None:
    head = encoder_of(ModelConfig(tower="resnet18", dropout=0.3), embed_dim=8, image_size=32).image_encoder.head
    assert [type(layer) for layer in head] == [nn.Dropout, nn.Linear, nn.GELU, nn.Dropout, nn.Linear]
    assert head[1].weight.shape == (512, 512) and head[4].weight.shape == (8, 512) and head[0].p == head[3].p == 0.3


@pytest.mark.parametrize("freeze", ["layer2", "tower"])
def test_what_is_frozen_neither_learns_nor_moves_its_batch_statistics(freeze: str) -> None:
    encoder = encoder_of(ModelConfig(tower="resnet18", hidden_dim=8, freeze=freeze), embed_dim=4, image_size=32)
    model = TrainedModel(encoder, InfoNCE())
    model.eval().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for group in model.parameter_groups().values() for p in group], lr=0.1)
    features, scalars = model({"image": images(4)})
    (scalars["scale"] * features["image"][:, 0].sum()).backward()
    optimizer.step()
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    frozen = ("conv1", "bn1", "layer1", "layer2") + (("layer3", "layer4") if freeze == "tower" else ())
    opens = tuple(f"encoder.image_encoder.tower.{stage}." for stage in frozen)
    assert not any(name.startswith(opens) for name in moved)
    trained = {name for name in before if not name.startswith(opens)}
    assert {name for name in trained if name.endswith((".weight", "running_mean", "logit_scale"))} <= moved
    assert all(p.grad is None for name, p in model.named_parameters() if name.startswith(opens))


def test_a_frozen_tower_keeps_no_activations_for_the_backward_pass() -> None:
    model = encoder_of(ModelConfig(tower="resnet18", freeze="tower"), embed_dim=4, image_size=32)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
        model.image_features(images(3))
    assert all(len(shape) <= 2 for shape in saved)
    assert model.parameter_groups()["tower"] == []


def test_frozen_parts_stay_in_eval_mode_when_batch_norms_are_synchronised() -> None:
    model = encoder_of(ModelConfig(tower="resnet18", freeze="layer1"), embed_dim=4, image_size=32)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model).train()
    tower = model.image_encoder.tower
    assert isinstance(tower.bn1, nn.SyncBatchNorm)
    assert not tower.bn1.training and not tower.layer1[0].bn1.training and tower.layer2[0].bn1.training


def test_a_file_does_not_say_how_its_pictures_were_normalised() -> None:
    with pytest.raises(ConfigError, match=r"w\.pth, which does not say .*set model\.normalize to imagenet"):
        ModelConfig(weights="w.pth")


def test_a_description_rebuilds_the_model() -> None:
    torch.manual_seed(1)
    model = encoder_of(
        ModelConfig(tower="resnet18", hidden_dim=12, dropout=0.2, normalize="half"), embed_dim=6, image_size=32
    )
    again = rebuild_encoder(model.describe())
    again.load_state_dict(model.state_dict())
    assert again.normalization == HALF and not again.training
    assert torch.equal(again.image_features(images()), model.eval().image_features(images()))


def test_channels_last_is_a_setting_of_the_weights() -> None:
    for channels_last in (True, False):
        model = encoder_of(ModelConfig(tower="resnet18", channels_last=channels_last), embed_dim=4, image_size=32)
        weight = model.image_encoder.tower.layer1[0].conv1.weight
        assert weight.is_contiguous(memory_format=torch.channels_last) == channels_last


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dropout": 1.0}, r"model\.dropout is 1\.0"),
        ({"hidden_dim": -1}, r"model\.hidden_dim is -1"),
        ({"embed_dim": -1}, r"model\.embed_dim is -1"),
    ],
)
def test_impossible_settings_are_named(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**options)
