"""AdamW's groups, their learning rates, and the averaged weights."""

from __future__ import annotations

import pytest
import torch
from encoders import encoder_of
from torch import nn

from core.errors import ConfigError
from trainer.models.config import ModelConfig
from trainer.optim.build import OptimConfig, build_optimizer, set_learning_rates
from trainer.optim.ema import averaged_model


@pytest.fixture(scope="module")
def model():
    return encoder_of(ModelConfig(tower="resnet18", hidden_dim=16), embed_dim=8, image_size=32)


def test_every_trainable_parameter_is_in_one_group_and_only_matrices_decay(model) -> None:
    optimizer = build_optimizer(model, OptimConfig(weight_decay=0.3))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(decay) == len(list(model.parameters()))
    undecayed = {name for name, p in model.named_parameters() if decay[id(p)] == 0}
    norms = {
        f"{module_name}.{name}"
        for module_name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for name, _ in module.named_parameters()
    }
    assert undecayed == norms | {"logit_scale"} | {n for n, _ in model.named_parameters() if n.endswith("bias")}
    assert set(decay.values()) == {0.0, 0.3}


def test_tower_and_head_have_their_own_learning_rates_through_the_schedule(model) -> None:
    optimizer = build_optimizer(model, OptimConfig(lr=1e-3, tower_lr=1e-4))
    assert set_learning_rates(optimizer, 5e-4) == pytest.approx({"tower": 5e-5, "head": 5e-4, "logit_scale": 5e-4})
    for group in optimizer.param_groups:
        assert group["lr"] == pytest.approx(5e-5 if group["name"] == "tower" else 5e-4)


def test_without_a_rate_of_its_own_the_tower_learns_as_the_head(model) -> None:
    rates = set_learning_rates(build_optimizer(model, OptimConfig(lr=1e-3)), 1e-3)
    assert rates["tower"] == rates["head"] == 1e-3


def test_a_frozen_tower_has_no_group() -> None:
    frozen = encoder_of(ModelConfig(tower="resnet18", freeze="tower"), embed_dim=8, image_size=32)
    optimizer = build_optimizer(frozen, OptimConfig())
    assert {group["name"] for group in optimizer.param_groups} == {"head", "logit_scale"}


def test_the_step_is_adamws_with_decoupled_decay() -> None:
    # A slow, obvious AdamW (Loshchilov 2019) on one matrix of the head.
    frozen = encoder_of(ModelConfig(tower="resnet18", freeze="tower"), embed_dim=8, image_size=32)
    config = OptimConfig(lr=0.01, weight_decay=0.5, betas=(0.8, 0.9), eps=1e-3)
    optimizer, weight = build_optimizer(frozen, config), frozen.image_encoder.head[1].weight
    expected, m, v = weight.detach().clone().double(), 0.0, 0.0
    for step in range(1, 4):
        weight.grad = torch.full_like(weight, 0.1 * step)
        m, v = 0.8 * m + 0.2 * 0.1 * step, 0.9 * v + 0.1 * (0.1 * step) ** 2
        expected = expected * (1 - 0.01 * 0.5) - 0.01 * (m / (1 - 0.8**step)) / ((v / (1 - 0.9**step)) ** 0.5 + 1e-3)
        optimizer.step()
    torch.testing.assert_close(weight.detach().double(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, r"optim\.lr is 0\.0: give a number above 0"),
        ({"weight_decay": -0.1}, r"optim\.weight_decay is -0\.1"),
        ({"betas": (0.9, 1.0)}, r"optim\.betas\[1\] is 1\.0"),
        ({"ema_decay": 1.5}, r"optim\.ema_decay is 1\.5: give a number from 0 to below 1"),
        ({"tower_lr": 0.0}, r"optim\.tower_lr is 0.*model\.freeze=tower"),
    ],
)
def test_impossible_settings_are_named(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OptimConfig(**options)


def test_averaged_weights_follow_the_model_slower_and_slower() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    averaged = averaged_model(model, decay=0.5)
    expected = None
    for update in range(20):
        with torch.no_grad():
            model[0].weight.fill_(update**2)
            model[1].running_mean.fill_(-update)
            model[1].num_batches_tracked.fill_(update)
        averaged.update_parameters(model)
        keep = 0.0 if expected is None else min(0.5, (1 + update) / (10 + update))
        expected = keep * (expected or 0.0) + (1 - keep) * update**2
        assert averaged.module[0].weight[0, 0].item() == pytest.approx(expected, rel=1e-5)
    assert -19 < averaged.module[1].running_mean[0] < -17
    assert averaged.module[1].num_batches_tracked == 19
    assert not averaged.module.training and not any(p.requires_grad for p in averaged.parameters())
