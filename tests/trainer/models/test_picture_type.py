"""Towers that begin with a product take rounded pictures; those that do something else first take float32 ones."""

from __future__ import annotations

import pytest
import torch
from encoders import encoder_of
from torch import Tensor, nn

from trainer.models.config import ModelConfig
from trainer.models.encoder import ImageEncoder
from trainer.models.picture_type import picture_type

CPU = torch.device("cpu")


class Resized(nn.Module):
    """A tower that first makes its pictures smaller, as timm's CrossViT does for its second branch."""

    def __init__(self) -> None:
        super().__init__()
        self.product = nn.Conv2d(3, 8, 16)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.product((images[:, :, ::2, ::2] + images[:, :, 1::2, 1::2]) / 2)
        return features


@pytest.mark.parametrize("tower", ["mobilenet_v3_small", "vit_b_32", "timm:efficientnet_b0", "timm:tf_efficientnet_b0"])
def test_a_tower_that_begins_with_a_product_takes_what_autocast_would_make(tower: str) -> None:
    encoder = encoder_of(ModelConfig(tower=tower), embed_dim=8, image_size=32).image_encoder
    assert picture_type(encoder, 32, CPU, "bf16") == torch.bfloat16
    assert picture_type(encoder, 32, CPU, "no") == torch.float32
    pictures = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        features = encoder.eval().tower_features(pictures)
        assert torch.equal(features, encoder.tower_features(pictures.bfloat16()))
    assert features.std() > 0


@pytest.mark.parametrize(
    "first",
    [
        Resized(),
        nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 32)),  # rounds alike as long as it has learned nothing
        nn.Sequential(nn.ZeroPad2d(2), nn.AvgPool2d(2), nn.Conv2d(3, 8, 16)),
    ],
)
def test_a_tower_that_does_something_else_first_takes_float32(first: nn.Module) -> None:
    encoder = ImageEncoder(first, 8, 8, 4, dropout=0.5, frozen_until="nothing")
    assert picture_type(encoder, 32, CPU, "bf16") == torch.float32


def test_the_encoder_is_left_as_it_was() -> None:
    encoder = encoder_of(ModelConfig(tower="resnet18", freeze="layer1"), embed_dim=8, image_size=32).image_encoder
    encoder.train()
    modes = [part.training for part in encoder.modules()]
    state = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    random_state = torch.get_rng_state()
    picture_type(encoder, 32, CPU, "bf16")
    assert [part.training for part in encoder.modules()] == modes and not all(modes) and any(modes)
    assert all(torch.equal(tensor, state[name]) for name, tensor in encoder.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
