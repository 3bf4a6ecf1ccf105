"""The block engine: blocks of any size, ranks' slices, unused parts, precision; over real ranks: tests/exactness."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from objective_rows import assert_same, found, gradients, make_values, right
from torch import Tensor

from trainer.objectives.engine import blocked_loss, whole_loss
from trainer.objectives.infonce import InfoNCE
from trainer.objectives.nt_xent import NTXent
from trainer.objectives.objective import Block, Objective, Rows
from trainer.objectives.siglip import SigLIP
from trainer.objectives.supcon import SupCon

EVERY: list[Objective] = [
    InfoNCE(),
    InfoNCE(0.1),
    InfoNCE(0.1, "multi", 0.5),
    InfoNCE(captions="all"),
    InfoNCE(0.1, "multi", 0.5, "all"),
    SigLIP(init_bias=-1.0),
    SigLIP("multi", init_bias=-1.0),
    NTXent(),
    SupCon(),
    SupCon(views=1),
]
SIZES = {"num_rows": st.integers(1, 9), "embed_dim": st.integers(2, 6), "seed": st.integers(0, 10**6)}


@given(**SIZES, objective=st.sampled_from(EVERY), block_size=st.integers(0, 10), num_images=st.integers(1, 9))
@settings(max_examples=80, deadline=None)
def test_blocks_of_any_size_give_the_paper_s_loss(
    objective: Objective, block_size: int, num_rows: int, embed_dim: int, seed: int, num_images: int
) -> None:
    objective = replace(objective, block_size=block_size)
    values = make_values(objective, num_rows, embed_dim, seed, num_images)
    loss = found(objective, values)
    if isinstance(objective, SupCon) and objective.views == 1 and not _has_pair(values.given["label"]):
        assert float(loss.detach()) == 0  # the paper has no mean of nothing
        assert all(float(x.abs().sum()) == 0 for x in gradients(loss, values).values())
        return
    assert_same(loss, right(objective, values), values)
    assert_same(whole_loss(objective, values.rows(), values.scalars, {}), found(objective, values), values)


def _has_pair(labels: Tensor) -> bool:
    chosen = labels[labels >= 0].tolist()
    return len(set(chosen)) < len(chosen)


@given(**SIZES, objective=st.sampled_from(EVERY), num_ranks=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_slices_at_their_offsets_average_to_the_whole(
    objective: Objective, num_rows: int, embed_dim: int, seed: int, num_ranks: int
) -> None:
    objective = replace(objective, block_size=2)
    values = make_values(objective, num_rows * num_ranks, embed_dim, seed)
    parts = [
        blocked_loss(objective, values.rows(start, start + num_rows), values.scalars, {})
        for start in range(0, num_rows * num_ranks, num_rows)
    ]
    assert_same(torch.stack(parts).mean(), found(objective, values), values)


def test_the_incoming_gradient_multiplies_all() -> None:
    values = make_values(SigLIP(), 6)
    once, thrice = (gradients(factor * found(SigLIP(), values), values) for factor in (1, 3))
    torch.testing.assert_close(thrice, {name: 3 * x for name, x in once.items()})


@pytest.mark.parametrize("frozen", ["text", "image", "scale"])
def test_what_is_frozen_changes_no_other_gradient(frozen: str) -> None:
    objective = InfoNCE(0.1, block_size=3)
    values = make_values(objective, 7)
    expected = gradients(found(objective, values), values)
    values.leaves[frozen].requires_grad_(False)
    trained = {name: x for name, x in values.leaves.items() if name != frozen}
    grads = torch.autograd.grad(found(objective, values), list(trained.values()))
    for name, grad in zip(trained, grads):
        torch.testing.assert_close(grad, expected[name], rtol=1e-12, atol=1e-15, msg=name)


def test_nothing_to_train_gives_a_loss_all_the_same() -> None:
    values = make_values(InfoNCE(), 5)
    right = float(found(InfoNCE(), values).detach())
    for x in values.leaves.values():
        x.requires_grad_(False)
    loss = found(InfoNCE(), values)
    assert float(loss) == right and not loss.requires_grad


@dataclass(frozen=True)
class Frugal(Objective):
    """Uses its images alone, in two terms of which the second has no gradient."""

    features = ("image", "text")

    def terms(self, block: Block) -> Iterator[Tensor]:
        yield (block.rows["image"] * block.state["w"]).sum()
        yield block.columns["text"].detach().sum() * 0 + len(block.rows["image"])

    def parameters(self) -> dict[str, float]:
        return {"idle": 2.0}


def test_features_and_scalars_that_are_not_used_get_zeros() -> None:
    values = make_values(Frugal(), 6)
    weights = torch.arange(5, dtype=torch.float64)
    loss = blocked_loss(Frugal(block_size=4), values.rows(), values.scalars, {"w": weights})
    grads = torch.autograd.grad(loss, list(values.leaves.values()))  # none of them None
    image, text, idle = grads
    torch.testing.assert_close(image, (weights / 6).expand(6, 5))
    assert not text.any() and not idle.any()
    assert float(loss.detach()) == pytest.approx(float((values.features["image"] @ weights).sum() / 6 + 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("objective", EVERY, ids=repr)
def test_less_than_float64_is_computed_in_float32_even_under_autocast(objective: Objective, dtype: torch.dtype) -> None:
    values = make_values(objective, 9, 8, dtype=dtype)
    scalars = {name: x.detach().float().requires_grad_() for name, x in values.scalars.items()}
    exact = replace(values, features={name: x.detach().double() for name, x in values.features.items()})
    exact = replace(exact, scalars={name: x.detach().double() for name, x in scalars.items()})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = blocked_loss(objective, values.rows(), scalars, {})
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(x.grad is not None and x.grad.dtype == dtype for x in values.features.values())
    assert float(loss.detach()) == pytest.approx(float(right(objective, exact)), rel=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("objective", EVERY, ids=repr)
def test_features_that_are_no_numbers_give_a_loss_that_is_none(objective: Objective, value: float) -> None:
    for name in objective.features:
        values = make_values(objective, 6)
        values.given.update({key: torch.arange(6) // 2 for key in objective.columns})
        values.features[name].detach().view(6, -1)[4, 1] = value
        loss = float(found(objective, values).detach())
        assert math.isnan(loss) if math.isnan(value) else not math.isfinite(loss), name


def test_no_matrix_is_larger_than_a_block() -> None:
    seen = []

    class Watching(InfoNCE):
        def terms(self, block: Block) -> Iterator[Tensor]:
            seen.append((len(block.rows["image"]), len(block.columns["image"]), block.offset))
            yield from super().terms(block)

    values = make_values(InfoNCE(), 8)
    blocked_loss(Watching(block_size=3), values.rows(1, 8), values.scalars, {})
    assert seen == [(3, 8, 1), (3, 8, 4), (1, 8, 7)]
    seen.clear()
    blocked_loss(Watching(block_size=0), values.rows(1, 8), values.scalars, {})
    assert seen == [(7, 8, 1)]


def test_each_term_is_differentiated_before_the_next_is_asked_for() -> None:
    order: list[str] = []

    class Mark(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            order.append("forward")
            return x.sum()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            order.append("backward")
            return torch.ones(3, 5, dtype=torch.float64)

    class TwoTerms(Frugal):
        def terms(self, block: Block) -> Iterator[Tensor]:
            yield Mark.apply(block.rows["image"])
            yield Mark.apply(block.rows["image"])

    values = make_values(Frugal(), 3)
    blocked_loss(TwoTerms(), values.rows(), values.scalars, {})
    assert order == ["forward", "backward"] * 2


@dataclass(frozen=True)
class Counting(Objective):
    """Divides by a number that stands on the device, whose third has no end."""

    features = ("image",)

    def terms(self, block: Block) -> Iterator[Tensor]:
        yield block.rows["image"].sum()

    def num_terms(self, everywhere: Mapping[str, Tensor]) -> Tensor:
        return torch.tensor(3)


def test_a_number_of_terms_on_the_device_is_divided_by_in_full() -> None:
    values = make_values(Counting(), 4)
    expected = float(values.features["image"].detach().sum() / 3)
    for loss in (blocked_loss, whole_loss):
        assert float(loss(Counting(), values.rows(), {}, {}).detach()) == pytest.approx(expected, rel=1e-14)
    half = values.rows(0, 2)  # of a rank of two: its part counts twice, since DDP halves it
    assert float(blocked_loss(Counting(), half, {}, {}).detach()) == pytest.approx(
        float(2 * values.features["image"][:2].detach().sum() / 3), rel=1e-14
    )


def test_rows_are_not_changed() -> None:
    values = make_values(NTXent(), 6)
    before = {name: x.detach().clone() for name, x in values.together.items()}
    rows = values.rows()
    found(NTXent(), values)
    assert all(torch.equal(rows.own[name].detach(), x) for name, x in before.items())
    assert isinstance(rows, Rows)
