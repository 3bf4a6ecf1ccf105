"""A step without finite gradients changes nothing: weights, moments, step count, batch statistics."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer.step.buffers import KeptBuffers
from trainer.step.nonfinite import step_if_finite


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def run_step(model: nn.Module, optimizer: Any, value: float = 1.0) -> Tensor:
    """One step on inputs of which one is `value`; gives what `step_if_finite` gives."""
    before = KeptBuffers(model.buffers())
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    x[0, 0] = value
    model(x).square().sum().backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    stepped = step_if_finite(optimizer, norm, before)
    optimizer.zero_grad()
    return stepped


def everything(model: nn.Module, optimizer: Any) -> dict[str, Any]:
    inner = getattr(optimizer, "optimizer", optimizer)
    return copy.deepcopy({"model": dict(model.state_dict()), "optimizer": inner.state_dict()["state"]})


def assert_same(one: Any, other: Any) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0)


class Scaled:
    """As Accelerate wraps an optimizer under fp16: the scaler skips a step whose gradients it found not finite."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer, self.scaler, self.calls = optimizer, object(), 0

    def step(self) -> None:
        self.calls += 1
        params = [p for group in self.optimizer.param_groups for p in group["params"]]
        if all(bool(p.grad.isfinite().all()) for p in params):
            self.optimizer.step()

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()


class Prepared:
    """As Accelerate wraps an optimizer without a scaler."""

    scaler = None

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def step(self) -> None:
        self.optimizer.step()

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()


MAKERS = {
    "plain": lambda params: torch.optim.AdamW(params, lr=0.1),
    "fused": lambda params: torch.optim.AdamW(params, lr=0.1, fused=True),
    "with a scaler": lambda params: Scaled(torch.optim.AdamW(params, lr=0.1)),
    "prepared": lambda params: Prepared(torch.optim.AdamW(params, lr=0.1)),
    "prepared, fused": lambda params: Prepared(torch.optim.AdamW(params, lr=0.1, fused=True)),
}


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_without_finite_gradients_changes_nothing(maker: str, value: float) -> None:
    model = make_model()
    optimizer = MAKERS[maker](model.parameters())
    assert bool(run_step(model, optimizer))
    before = everything(model, optimizer)
    stepped = run_step(model, optimizer, value)
    assert stepped.dtype == torch.bool and stepped.shape == () and not bool(stepped)
    assert_same(everything(model, optimizer), before)

    # And nothing of it is left behind: the next step is the one that would have come.
    assert bool(run_step(model, optimizer))
    other = make_model()
    unharmed = MAKERS[maker](other.parameters())
    run_step(other, unharmed)
    run_step(other, unharmed)
    assert_same(everything(model, optimizer), everything(other, unharmed))
    inner = getattr(optimizer, "optimizer", optimizer)
    assert not hasattr(inner, "found_inf") and not hasattr(inner, "grad_scale")


@pytest.mark.parametrize("maker", MAKERS)
def test_finite_steps_are_those_of_the_optimizer_alone(maker: str) -> None:
    model, other = make_model(), make_model()
    optimizer, alone = MAKERS[maker](model.parameters()), MAKERS[maker](other.parameters())
    before = everything(model, optimizer)
    for _ in range(3):
        assert bool(run_step(model, optimizer))
        other(torch.randn(5, 3, generator=torch.Generator().manual_seed(1)).index_put((torch.tensor(0),) * 2, torch.tensor(1.0))).square().sum().backward()  # fmt: skip # noqa: E501
        nn.utils.clip_grad_norm_(other.parameters(), 1.0)
        alone.step()
        alone.zero_grad()
    assert_same(everything(model, optimizer), everything(other, alone))
    assert not torch.equal(before["model"]["0.weight"], model[0].weight)  # type: ignore[arg-type]
    assert model[1].num_batches_tracked == 3


def test_the_scaler_is_asked_even_when_gradients_are_not_finite() -> None:
    model = make_model()
    optimizer = Scaled(torch.optim.AdamW(model.parameters()))
    run_step(model, optimizer, float("nan"))
    assert optimizer.calls == 1  # else it would never lower its scale


def test_kept_buffers_are_put_back_everywhere_or_where_asked() -> None:
    model = make_model()
    kept = KeptBuffers(model.buffers())
    held = {name: buffer.clone() for name, buffer in model.named_buffers()}

    def spoil() -> dict[str, Tensor]:
        for buffer in model.buffers():
            buffer.copy_(buffer + 1 if not buffer.is_floating_point() else torch.full_like(buffer, torch.nan))
        return {name: buffer.clone() for name, buffer in model.named_buffers()}

    spoilt = spoil()
    kept.put_back(torch.tensor(False))
    torch.testing.assert_close(dict(model.named_buffers()), spoilt, rtol=0, atol=0, equal_nan=True)
    kept.put_back(torch.tensor(True))
    assert_same(dict(model.named_buffers()), held)
    spoil()
    kept.put_back()
    assert_same(dict(model.named_buffers()), held)


def test_a_model_without_buffers_has_nothing_to_put_back() -> None:
    KeptBuffers([]).put_back(torch.tensor(True))
