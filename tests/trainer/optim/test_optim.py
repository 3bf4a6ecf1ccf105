"""AdamW's groups and their learning rates."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from core.errors import ConfigError
from trainer.models.build import build_encoder
from trainer.models.config import ModelConfig
from trainer.models.trained import TrainedModel
from trainer.objectives.infonce import InfoNCE
from trainer.objectives.objective import Objective
from trainer.objectives.siglip import SigLIP
from trainer.optim.build import build_optimizer, set_learning_rates
from trainer.optim.config import OptimConfig


def build(freeze: str = "nothing", objective: Objective | None = None) -> TrainedModel:
    objective = objective or InfoNCE()
    config = ModelConfig(tower="resnet18", hidden_dim=16, freeze=freeze)
    return TrainedModel(build_encoder(config, objective, embed_dim=8, image_size=32), objective)


@pytest.fixture(scope="module")
def model() -> TrainedModel:
    return build()


def test_every_trainable_parameter_is_in_one_group_and_only_matrices_decay(model: TrainedModel) -> None:
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
    biases = {name for name, _ in model.named_parameters() if name.endswith("bias")}
    assert undecayed == norms | {"learned.logit_scale"} | biases
    assert set(decay.values()) == {0.0, 0.3}


def test_parts_have_their_own_learning_rates_through_the_schedule(model: TrainedModel) -> None:
    optimizer = build_optimizer(model, OptimConfig(lr=1e-3, part_lr={"tower": 1e-4, "logit_scale": 2e-3}))
    rates = {"tower": 5e-5, "head": 5e-4, "logit_scale": 1e-3}
    assert set_learning_rates(optimizer, 5e-4) == pytest.approx(rates)
    for group in optimizer.param_groups:
        assert group["lr"] == pytest.approx(rates[group["name"]])


def test_without_rates_of_their_own_all_parts_learn_alike(model: TrainedModel) -> None:
    rates = set_learning_rates(build_optimizer(model, OptimConfig(lr=1e-3)), 1e-3)
    assert rates == {"tower": 1e-3, "head": 1e-3, "logit_scale": 1e-3}


def test_a_frozen_tower_has_no_group_and_learned_scalars_have_one_each() -> None:
    frozen = build_optimizer(build("tower"), OptimConfig())
    assert {group["name"] for group in frozen.param_groups} == {"head", "logit_scale"}
    siglip = build_optimizer(build("tower", SigLIP()), OptimConfig())
    assert {group["name"] for group in siglip.param_groups} == {"head", "logit_scale", "logit_bias"}


@pytest.mark.parametrize(
    ("freeze", "name", "sentence"),
    [
        ("nothing", "towr", r"nothing called 'towr' is trained.*'tower'"),
        ("nothing", "logit_bias", r"nothing called 'logit_bias' is trained.*'logit_scale'"),
        ("tower", "tower", r"nothing called 'tower' is trained"),
    ],
)
def test_a_rate_of_a_part_that_is_not_trained_is_refused_by_name(freeze: str, name: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=rf"optim\.part_lr: {sentence}"):
        build_optimizer(build(freeze), OptimConfig(part_lr={name: 1e-3}))


def test_the_step_is_adamws_with_decoupled_decay() -> None:
    # A slow, obvious AdamW (Loshchilov 2019) on one matrix of the head.
    frozen = build("tower")
    config = OptimConfig(lr=0.01, weight_decay=0.5, betas=(0.8, 0.9), eps=1e-3)
    optimizer, weight = build_optimizer(frozen, config), frozen.encoder.image_encoder.head[1].weight
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
        ({"part_lr": {"tower": 0.0}}, r"optim\.part_lr\.tower is 0.*or freeze the part"),
    ],
)
def test_impossible_settings_are_named(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OptimConfig(**options)


def test_a_fused_optimizer_is_a_setting_and_the_usual_one_on_gpus(model) -> None:
    for setting, expected in ((None, False), (True, True), (False, False)):
        assert build_optimizer(model, OptimConfig(fused=setting)).defaults["fused"] is expected  # on a CPU
