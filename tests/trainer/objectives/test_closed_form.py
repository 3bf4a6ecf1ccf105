"""Closed forms against plain autograd and finite differences, in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.objectives.closed_form import sigmoid_loss, softmax_loss

ROWS, COLUMNS, DIM = 3, 7, 4


def leaves() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows, columns, scale and bias."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = (torch.randn(n, DIM, generator=generator, dtype=torch.float64) for n in (ROWS, COLUMNS))
    scalars = (torch.tensor(x, dtype=torch.float64) for x in (1.7, -0.4))
    return tuple(x.requires_grad_() for x in (rows, columns, *scalars))  # type: ignore[return-value]


LEFT_OUT = torch.zeros(ROWS, COLUMNS, dtype=torch.bool)
LEFT_OUT[0, 1] = LEFT_OUT[1, 5] = LEFT_OUT[1, 6] = True
TARGET = torch.rand(ROWS, COLUMNS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
TARGET[LEFT_OUT] = 0
TARGET /= TARGET.sum(1, keepdim=True)
WEIGHTS = torch.tensor([0.5, 0.0, 2.0], dtype=torch.float64)
POSITIVE = torch.eye(ROWS, COLUMNS, dtype=torch.bool)
OPTIONS: dict[str, dict[str, Any]] = {
    "own": {"own": 0},
    "own, further on": {"own": 2},
    "own, columns left out": {"own": 2, "left_out": LEFT_OUT},
    "target": {"target": TARGET},
    "target, columns left out": {"target": TARGET, "left_out": LEFT_OUT},
    "weights": {"own": 2, "left_out": LEFT_OUT, "weights": WEIGHTS},
    "target and weights": {"target": TARGET, "left_out": LEFT_OUT, "weights": WEIGHTS},
}


def plain_softmax(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor | float,
    own: int | None = None,
    target: Tensor | None = None,
    left_out: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """The same by cross-entropy."""
    logits = scale * rows @ columns.T
    if left_out is not None:
        logits = logits.masked_fill(left_out, -1e30)
    q = F.one_hot(own + torch.arange(len(rows)), len(columns)).to(rows.dtype) if own is not None else target
    losses = F.cross_entropy(logits, q, reduction="none")
    return (losses if weights is None else losses * weights).sum()


def assert_same(one: Tensor, other: Tensor, inputs: Any) -> None:
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    for a, b in zip(torch.autograd.grad(one, inputs), torch.autograd.grad(other, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_softmax_loss_is_that_of_plain_autograd(name: str) -> None:
    rows, columns, scale, _ = leaves()
    one, other = (f(rows, columns, scale, **OPTIONS[name]) for f in (softmax_loss, plain_softmax))
    assert_same(3 * one, 3 * other, (rows, columns, scale))


@pytest.mark.parametrize("name", OPTIONS)
def test_the_softmax_loss_has_the_gradient_of_finite_differences(name: str) -> None:
    rows, columns, scale, _ = leaves()
    assert torch.autograd.gradcheck(lambda *x: softmax_loss(*x, **OPTIONS[name]), (rows, columns, scale))


def test_a_scale_that_is_a_number_gets_no_gradient() -> None:
    rows, columns, _, _ = leaves()
    assert_same(softmax_loss(rows, columns, 1.7, own=1), plain_softmax(rows, columns, 1.7, own=1), (rows, columns))


@pytest.mark.parametrize("trained", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
def test_some_inputs_alone_may_be_trained(trained: tuple[int, ...]) -> None:
    inputs = [x if number in trained else x.detach() for number, x in enumerate(leaves()[:3])]
    one, other = (f(*inputs, own=1) for f in (softmax_loss, plain_softmax))
    assert_same(3 * one, 3 * other, [inputs[number] for number in trained])


def plain_sigmoid(
    rows: Tensor, columns: Tensor, scale: Tensor, bias: Tensor, positive: Tensor, left_out: Tensor | None = None
) -> Tensor:
    logits = scale * rows @ columns.T + bias
    losses = -F.logsigmoid(torch.where(positive, logits, -logits))
    return (losses if left_out is None else losses.masked_fill(left_out, 0)).sum()


@pytest.mark.parametrize("left_out", [None, LEFT_OUT], ids=["all pairs", "pairs left out"])
def test_the_sigmoid_loss_is_that_of_plain_autograd(left_out: Tensor | None) -> None:
    inputs = leaves()
    one, other = (f(*inputs, positive=POSITIVE, left_out=left_out) for f in (sigmoid_loss, plain_sigmoid))
    assert_same(3 * one, 3 * other, inputs)
    assert torch.autograd.gradcheck(lambda *x: sigmoid_loss(*x, positive=POSITIVE, left_out=left_out), inputs)


@pytest.mark.parametrize("trained", [(0,), (1,), (2,), (3,), (1, 2), (2, 3), (0, 1, 3)])
def test_some_inputs_of_the_sigmoid_loss_alone_may_be_trained(trained: tuple[int, ...]) -> None:
    inputs = [x if number in trained else x.detach() for number, x in enumerate(leaves())]
    one, other = (f(*inputs, positive=POSITIVE) for f in (sigmoid_loss, plain_sigmoid))
    assert_same(3 * one, 3 * other, [inputs[number] for number in trained])


def test_large_logits_do_not_overflow() -> None:
    rows, columns = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    rows.requires_grad_()
    loss = softmax_loss(rows, columns, 1e4, own=1)
    assert float(loss.detach()) == pytest.approx(2e4)
    bias = torch.tensor(0.0)
    pairs = sigmoid_loss(rows, columns, torch.tensor(1e4), bias, positive=torch.tensor([[False, True]]))
    assert float(pairs.detach()) == pytest.approx(2e4)
    assert all(bool(x.isfinite().all()) for x in torch.autograd.grad(loss + pairs, rows))


@pytest.mark.parametrize("where", ["rows", "columns"])
def test_a_nan_in_any_feature_gives_nan(where: str) -> None:
    rows, columns, scale, bias = (x.detach().clone() for x in leaves())
    {"rows": rows, "columns": columns}[where][1, 2] = math.nan
    for options in OPTIONS.values():
        if "weights" not in options or where == "columns":  # a row of weight 0 counts nothing
            assert softmax_loss(rows, columns, scale, **options).isnan()
    assert sigmoid_loss(rows, columns, scale, bias, positive=POSITIVE).isnan()


def test_a_row_of_weight_0_without_any_column_counts_nothing() -> None:
    rows, columns, scale, _ = leaves()
    left_out = LEFT_OUT.clone()
    left_out[1] = True
    target = TARGET.clone()
    target[1] = 0
    loss = softmax_loss(rows, columns, scale, target=target, left_out=left_out, weights=WEIGHTS)
    others = [0, 2]
    right = plain_softmax(
        rows[others], columns, scale, target=target[others], left_out=left_out[others], weights=WEIGHTS[others]
    )
    assert_same(loss, right, (rows, columns, scale))


def test_either_own_or_target_is_given() -> None:
    rows, columns, scale, _ = leaves()
    with pytest.raises(AssertionError):
        softmax_loss(rows, columns, scale)
    with pytest.raises(AssertionError):
        softmax_loss(rows, columns, scale, own=0, target=TARGET)
