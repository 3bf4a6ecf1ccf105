"""Thawing: which stage trains at which step, in which mode, and which recipes are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from encoders import encoder_of
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from core.config import from_mapping
from core.errors import ConfigError
from trainer.models.config import ModelConfig
from trainer.models.encoder import Encoder
from trainer.models.thaw import freezing


def model_config(**values: Any) -> ModelConfig:
    return from_mapping(ModelConfig, {"tower": "resnet18", "hidden_dim": 16, **values}, "test")


def encoder(**values: Any) -> Encoder:
    return encoder_of(model_config(**values), embed_dim=8, image_size=32)


@given(steps=st.lists(st.integers(1, 99), unique=True, max_size=5), step=st.integers(0, 99))
def test_each_step_has_the_last_stage_before_it(steps: list[int], step: int) -> None:
    stages = freezing("tower", {str(start): f"stage{start}" for start in steps}, 100)
    begun = [start for start in steps if start <= step]
    assert stages.at(step) == (f"stage{max(begun)}" if begun else "tower")
    assert stages.last == (f"stage{max(steps)}" if steps else "tower")


def test_shares_of_the_run_are_whole_steps() -> None:
    stages = freezing("tower", {"50%": "nothing", "10%": "layer3", "33.3%": "layer1"}, 1001)
    assert stages.stages == ((0, "tower"), (100, "layer3"), (333, "layer1"), (500, "nothing"))


@pytest.mark.parametrize(
    ("thaw", "sentence"),
    [
        ({"100": "nothing"}, r"'100' is step 100 of the run's 100: .* before the last"),
        ({"0.5%": "nothing"}, r"'0\.5%' is step 0 of the run's 100"),
        ({"50%": "layer1", "50.5%": "nothing"}, r"'50\.5%' is step 50 of the run's 100"),
    ],
)
def test_a_stage_without_a_step_of_its_own_is_refused(thaw: dict[str, str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=rf"model\.thaw: {sentence}"):
        freezing("tower", thaw, 100)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"thaw": {"5": "layer3"}}, r"model\.thaw is set, but model\.freeze is nothing"),
        ({"freeze": "tower", "thaw": {"soon": "layer3"}}, r"'soon' is neither a number of steps \(500\) nor a share"),
        ({"freeze": "tower", "thaw": {"0": "layer3"}}, r"'0' is neither"),
        ({"freeze": "tower", "thaw": {"100%": "layer3"}}, r"'100%' is neither"),
        ({"freeze": "tower", "thaw": {"5": "layer3", "50%": "nothing"}}, r"has steps and shares of the run \(5, 50%\)"),
        ({"freeze": "tower", "thaw": {"5": "layer3", "05": "nothing"}}, r"'5' and '05' are the same step"),
    ],
)
def test_what_cannot_be_thawed_is_named_before_a_tower_is_built(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        model_config(**values)


@pytest.mark.parametrize(
    ("freeze", "thaw", "sentence"),
    [
        ("tower", {"5": "layer33"}, r"model\.thaw: this tower has no stage 'layer33'\. Did you mean 'layer3'"),
        ("layer2", {"5": "layer3"}, r"'layer3' comes after 'layer2', but leaves no less of the tower frozen.*layer4"),
        ("tower", {"5": "layer1", "3": "layer1"}, r"'layer1' comes after 'layer1'"),
    ],
)
def test_stages_that_do_not_thaw_are_refused(freeze: str, thaw: dict[str, str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        encoder(freeze=freeze, thaw=thaw)


def test_batch_norms_and_gradients_follow_what_is_frozen() -> None:
    image_encoder = encoder(freeze="tower", thaw={"5": "layer3", "7": "nothing"}).image_encoder
    tower = image_encoder.tower
    assert isinstance(tower.layer3[0].bn1, nn.BatchNorm2d)

    def trained() -> set[str]:
        return {name.split(".")[0] for name, p in tower.named_parameters() if p.requires_grad}

    def counting() -> set[str]:
        norms = {name: m for name, m in tower.named_modules() if isinstance(m, nn.BatchNorm2d)}
        return {name.split(".")[0] for name, norm in norms.items() if norm.training}

    assert trained() == counting() == set() and not tower.training
    image_encoder.freeze_until("layer3")
    assert trained() == counting() == {"layer4"}
    before = {name: buffer.clone() for name, buffer in tower.named_buffers() if not name.endswith("tracked")}
    image_encoder(torch.randn(4, 3, 32, 32)).sum().backward()
    moved = {
        name.split(".")[0] for name, b in tower.named_buffers() if name in before and not torch.equal(b, before[name])
    }
    assert moved == {"layer4"}
    assert {name.split(".")[0] for name, p in tower.named_parameters() if p.grad is not None} == {"layer4"}
    image_encoder.eval()
    image_encoder.freeze_until("nothing")
    assert counting() == set() and "conv1" in trained()  # as the whole: in eval mode
    image_encoder.train()
    assert counting() == {"bn1", "layer1", "layer2", "layer3", "layer4"} and tower.training


def test_what_a_tower_fixes_itself_stays_fixed() -> None:
    image_encoder = encoder().image_encoder
    fixed = image_encoder.tower.conv1.weight.requires_grad_(False)
    image_encoder._may_train = [p.requires_grad for p in image_encoder.tower.parameters()]
    for stage in ("tower", "layer1", "nothing"):
        image_encoder.freeze_until(stage)
        assert not fixed.requires_grad
