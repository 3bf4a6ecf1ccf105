"""Every optimizer of the table against its paper, written down slowly; what is frozen for now; and their states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from core.config import Choice
from core.errors import ConfigError
from trainer.checkpoint.tensor_tree import decode_tree, encode_tree
from trainer.models.build import build_encoder
from trainer.models.config import ModelConfig
from trainer.models.trained import TrainedModel
from trainer.objectives.infonce import InfoNCE
from trainer.optim import timm_optimizers
from trainer.optim.build import build_optimizer, set_learning_rates
from trainer.optim.config import OptimConfig
from trainer.step.buffers import KeptBuffers
from trainer.step.nonfinite import step_if_finite

Update = Callable[[np.ndarray, np.ndarray, int], np.ndarray]  # weight, gradient, number of the step -> weight
B1, B2, EPS, LR, DECAY = 0.8, 0.9, 1e-3, 0.05, 0.01


def sgd(momentum: float, nesterov: bool) -> Update:
    buffer: Any = 0.0

    def update(w: np.ndarray, g: np.ndarray, step: int) -> np.ndarray:
        nonlocal buffer
        g = g + DECAY * w
        buffer = momentum * buffer + g
        return w - LR * (g + momentum * buffer if nesterov else buffer)

    return update


def adaptive(trusts: bool) -> Update:
    """AdamW (Loshchilov 2019, alg. 2), or LAMB (You 2020, alg. 2)."""
    m: Any = 0.0
    v: Any = 0.0

    def update(w: np.ndarray, g: np.ndarray, step: int) -> np.ndarray:
        nonlocal m, v
        m, v = B1 * m + (1 - B1) * g, B2 * v + (1 - B2) * g**2
        ratio = m / (1 - B1**step) / (np.sqrt(v / (1 - B2**step)) + EPS) + DECAY * w
        trust = np.linalg.norm(w) / np.linalg.norm(ratio) if trusts else 1.0
        return w - LR * trust * ratio

    return update


def lion() -> Update:
    """Chen 2023, alg. 2."""
    m: Any = 0.0

    def update(w: np.ndarray, g: np.ndarray, step: int) -> np.ndarray:
        nonlocal m
        direction = np.sign(B1 * m + (1 - B1) * g)
        m = B2 * m + (1 - B2) * g
        return w - LR * (direction + DECAY * w)

    return update


CASES: dict[str, tuple[Choice, dict[str, Any], Callable[[], Update]]] = {
    "adamw": (Choice("adamw"), {"betas": (B1, B2), "eps": EPS}, lambda: adaptive(False)),
    "sgd": (Choice("sgd"), {}, lambda: sgd(0.9, False)),
    "sgd, plain": (Choice("sgd", {"momentum": 0}), {}, lambda: sgd(0.0, False)),
    "sgd, nesterov": (Choice("sgd", {"momentum": 0.7, "nesterov": "true"}), {}, lambda: sgd(0.7, True)),
    "lamb": (Choice("lamb"), {"betas": (B1, B2), "eps": EPS}, lambda: adaptive(True)),
    "lion": (Choice("lion"), {"betas": (B1, B2)}, lion),
}
FUSED = [(name, fused) for name in CASES for fused in (False, True) if not fused or name.startswith(("adamw", "sgd"))]


def model_of() -> TrainedModel:
    torch.manual_seed(0)
    config = ModelConfig(tower="resnet18", hidden_dim=16, freeze="layer4")
    return TrainedModel(build_encoder(config, InfoNCE(), embed_dim=8, image_size=32), InfoNCE())


def optimizer_of(model: TrainedModel, name: str, fused: bool = False) -> torch.optim.Optimizer:
    choice, settings, _ = CASES[name]
    if choice.name in ("lamb", "lion"):
        pytest.importorskip("timm")
    fused_form = {"fused": True} if fused else {}
    optim = OptimConfig(optimizer=choice, lr=LR, weight_decay=DECAY, **settings, **fused_form)
    return build_optimizer(model, optim)


def gradient(weight: Tensor, step: int) -> Tensor:
    return torch.randn(weight.shape, generator=torch.Generator().manual_seed(step))


@pytest.mark.parametrize(("name", "fused"), FUSED)
def test_each_steps_as_its_paper_says(name: str, fused: bool) -> None:
    model = model_of()
    optimizer, update = optimizer_of(model, name, fused), CASES[name][2]()
    weight = model.encoder.image_encoder.head[1].weight
    expected = weight.detach().double().numpy().copy()
    for step in range(1, 6):
        weight.grad = gradient(weight, step)
        expected = update(expected, weight.grad.double().numpy(), step)
        optimizer.step()
        np.testing.assert_allclose(weight.detach().numpy(), expected, atol=2e-5)


@pytest.mark.parametrize(("name", "fused"), FUSED)
def test_what_has_no_gradient_neither_moves_nor_decays_and_begins_like_the_others(name: str, fused: bool) -> None:
    model = model_of()
    optimizer, head = optimizer_of(model, name, fused), model.encoder.image_encoder.head
    first, late = head[1].weight, head[4].weight
    before = late.detach().clone()
    for step in range(1, 4):
        first.grad = gradient(first, step)
        optimizer.step()
    assert torch.equal(late, before)
    assert not optimizer.state[late]
    expected, update = before.double().numpy(), CASES[name][2]()
    for step in range(1, 3):  # thawed
        first.grad, late.grad = gradient(first, step), gradient(late, step)
        expected = update(expected, late.grad.double().numpy(), step)
        optimizer.step()
    assert not torch.equal(late, before)
    # LAMB's correction counts steps of the group: a tensor's length is another's share, its direction is the same.
    tolerance = 0.05 if name == "lamb" else 2e-5
    np.testing.assert_allclose(late.detach().numpy(), expected, atol=tolerance)


@pytest.mark.parametrize(("name", "fused"), FUSED)
def test_a_state_that_was_written_and_read_goes_on_to_the_bit(name: str, fused: bool) -> None:
    def steps(model: TrainedModel, optimizer: torch.optim.Optimizer, numbers: range) -> None:
        for step in numbers:
            for number, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
                parameter.grad = gradient(parameter, 100 * step + number)
            optimizer.step()

    whole, broken = model_of(), model_of()
    steps(whole, optimizer_of(whole, name, fused), range(6))
    first = optimizer_of(broken, name, fused)
    steps(broken, first, range(3))
    written = b"".join(encode_tree(first.state_dict()))
    again = optimizer_of(broken, name, fused)
    again.load_state_dict(decode_tree(written))
    assert b"".join(encode_tree(again.state_dict())) == written
    state = again.state_dict()["state"]
    kept = sum(x.ndim > 0 for number in state for x in state[number].values() if isinstance(x, Tensor))
    trained = sum(p.requires_grad and p.ndim > 0 for p in broken.parameters())
    assert kept == OptimConfig(optimizer=CASES[name][0], lr=1e-3).optimizer_part.num_moments * trained
    steps(broken, again, range(3, 6))
    for ours, theirs in zip(broken.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_first_step_that_is_passed_over_leaves_no_momentum_of_sgd() -> None:
    model = model_of()
    optimizer = optimizer_of(model, "sgd", fused=True)
    weight = model.encoder.image_encoder.head[1].weight
    before = weight.detach().clone()
    torch.use_deterministic_algorithms(True)  # fresh memory is filled with NaN: what is read of it shows
    try:
        weight.grad = torch.full_like(weight, torch.nan)
        step_if_finite(optimizer, torch.tensor(torch.nan), KeptBuffers([]))
        assert torch.equal(weight, before)
        weight.grad = gradient(weight, 1)
        step_if_finite(optimizer, torch.tensor(1.0), KeptBuffers([]))
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(weight.detach(), before - LR * (gradient(weight, 1) + DECAY * before))


def test_a_part_that_is_frozen_for_now_has_a_rate_of_zero() -> None:
    model = model_of()
    model.encoder.image_encoder.freeze_until("nothing")
    optimizer = build_optimizer(model, OptimConfig(lr=1e-3, part_lr={"tower": 1e-4}))
    model.encoder.image_encoder.freeze_until("tower")
    assert set_learning_rates(optimizer, 1e-3) == {"tower": 0.0, "head": 1e-3, "logit_scale": 1e-3}
    model.encoder.image_encoder.freeze_until("layer3")
    assert set_learning_rates(optimizer, 1e-3) == pytest.approx({"tower": 1e-4, "head": 1e-3, "logit_scale": 1e-3})


@pytest.mark.parametrize(
    ("choice", "settings", "sentence"),
    [
        (Choice("adamm"), {}, r"optim\.optimizer: unknown name 'adamm'\. Did you mean 'adamw'"),
        (Choice("adamw", {"momentum": 0.9}), {}, r"optim\.optimizer 'adamw': unknown option 'momentum'"),
        (Choice("sgd", {"momentum": 1.0}), {}, r"momentum is 1\.0: give a number from 0 to below 1"),
        (Choice("sgd", {"momentum": 0.0, "nesterov": True}), {}, r"nesterov needs a momentum"),
        (Choice("sgd"), {"lr": 0.1}, r"weight_decay is 0\.2: with sgd, .* 20 % of every weight in a step"),
        (Choice("sgd"), {"lr": 1e-4, "part_lr": {"head": 0.1}}, r"learning rate of 0\.1"),
        (Choice("sgd"), {"betas": (0.9, 0.95)}, r"optim\.betas is \(0\.9, 0\.95\), but sgd has none"),
        (Choice("lion"), {"eps": 1e-8}, r"optim\.eps is 1e-08, but lion has none"),
        (Choice("lamb"), {"fused": True}, r"optim\.fused is true, but lamb has no fused form"),
    ],
)
def test_what_does_not_go_together_is_named(choice: Choice, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        OptimConfig(optimizer=choice, **settings)


def test_without_timm_its_optimizers_are_refused_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm_optimizers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"lion, which is timm's, .*pip install 'shardclip\[timm\]'"):
        build_optimizer(model_of(), OptimConfig(optimizer=Choice("lion"), lr=1e-4))


def test_the_usual_optimizer_is_torchs_adamw_itself() -> None:
    optimizer = build_optimizer(model_of(), OptimConfig())
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.defaults["betas"] == (0.9, 0.98)
