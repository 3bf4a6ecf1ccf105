"""What a tower is: a measured width, and sizes that are refused before anything starts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from core.errors import ConfigError
from trainer.models.towers.tower import Tower, built_for, expect_whole_patches


class Noisy(nn.Module):
    """Would draw numbers and move statistics in training mode; claims a width that it does not have."""

    num_features = 3

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 7, 3), nn.BatchNorm2d(7), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1))
        self.body[2].eval()
        self.seen: list[str] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(str(images.device))
        return self.body(images)  # type: ignore[no-any-return]


def test_width_is_measured_and_measuring_leaves_no_trace() -> None:
    module = Noisy()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    modes, random_state = [part.training for part in module.modules()], torch.get_rng_state()
    tower = Tower("own:noisy", module, 16)
    assert tower.width == 7 and tower.module is module and module.seen == []
    assert [part.training for part in module.modules()] == modes and not modes[3 + 1]
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert all(tensor.device.type == "cpu" and tensor.grad is None for tensor in module.parameters())


def test_a_width_cannot_be_claimed() -> None:
    claims: dict[str, Any] = {"width": 3}
    with pytest.raises(TypeError):
        Tower("own:noisy", Noisy(), 16, **claims)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Conv2d(3, 5, 3), r"own:odd gives \(1, 5, 14, 14\) of one picture, not one vector"),
        (nn.Sequential(nn.Flatten(), nn.Linear(8, 5)), r"own:odd does not take pictures of 16 pixels \(.*1, 768.*\)"),
        (nn.Sequential(nn.Unfold(2), nn.Flatten(0)), r"own:odd gives \(2700,\) of one picture"),
    ],
)
def test_what_is_no_tower_is_refused(module: nn.Module, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        Tower("own:odd", module, 16)
    assert "\n" not in str(error.value)


def test_an_assertion_without_words_is_called_by_its_name() -> None:
    with pytest.raises(
        ConfigError, match=r"own:odd does not take pictures of 9 pixels \(AssertionError\)\. Set another"
    ):
        with built_for("own:odd", 9):
            raise AssertionError


@pytest.mark.parametrize(("image_size", "remedy"), [(100, "96 or 112"), (9, "16")])
def test_a_size_of_broken_patches_is_told_the_nearest_whole_ones(image_size: int, remedy: str) -> None:
    expect_whole_patches("vit", 96, 16)
    sentence = rf"vit cuts pictures into patches of 16 pixels, and {image_size} is no .* Set image_size to {remedy}\."
    with pytest.raises(ConfigError, match=sentence):
        expect_whole_patches("vit", image_size, 16)
