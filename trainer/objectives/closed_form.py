"""Softmax and sigmoid losses of a block of similarities, differentiated by formula instead of by autograd.

Autograd keeps several matrices of a block's size and passes over each of them; here one matrix is written once and
turned in place into its gradient. Dimensions: m rows, n columns, D embedding.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

Formula = Callable[[Tensor], tuple[Tensor, Tensor]]  # logits (m, n) -> sum of losses, gradient in the logits' memory


def softmax_loss(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor | float,
    *,
    own: int | None = None,
    target: Tensor | None = None,
    left_out: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Sum over rows of `log sum_j exp(s * a_i . c_j) - sum_j q_ij * s * a_i . c_j`, over the columns not left out.

    Args:
        rows: `(m, D)`.
        columns: `(n, D)`.
        scale: scalar 1 / temperature.
        own: row i has its only positive in column `own + i`. Give this or `target`; it saves a matrix and two passes.
        target: shares q `(m, n)`, 0 where left out; a row's shares sum to 1.
        left_out: bool `(m, n)`.
        weights: `(m,)` of the rows, without gradient; a row of weight 0 may have no target.

    Returns:
        A scalar; NaN features give NaN.
    """
    assert (own is None) != (target is None)
    formula = partial(_softmax, own=own, target=target, left_out=left_out, weights=weights)
    return _ClosedForm.apply(rows, columns, scale, None, formula)


def sigmoid_loss(
    rows: Tensor, columns: Tensor, scale: Tensor, bias: Tensor, *, positive: Tensor, left_out: Tensor | None = None
) -> Tensor:
    """Sum over all pairs of `-log sigmoid(z_ij * (s * a_i . c_j + b))` (Zhai et al. 2023, eq. 1).

    Args:
        rows, columns, scale, left_out: as for `softmax_loss`.
        bias: scalar b.
        positive: bool `(m, n)`; z is 1 there and -1 elsewhere.
    """
    return _ClosedForm.apply(rows, columns, scale, bias, partial(_sigmoid, positive=positive, left_out=left_out))


class _ClosedForm(torch.autograd.Function):
    """Logits of a block, a formula for their loss and gradient, and the products that carry it to the features."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, columns: Tensor, scale: Tensor | float, bias: Tensor | None, formula: Formula
    ) -> Tensor:
        scaled = rows * scale  # the narrow side: a pass over the matrix of logits is saved
        logits = scaled @ columns.T
        if bias is not None:
            logits.add_(bias)
        loss, grad = formula(logits)
        ctx.save_for_backward(rows, scaled, columns, grad)
        ctx.scale = scale
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        rows, scaled, columns, grad = ctx.saved_tensors
        needs_rows, needs_columns, needs_scale, needs_bias = ctx.needs_input_grad[:4]
        to_rows = to_columns = to_scale = to_bias = None
        if needs_columns:
            to_columns = grad.T @ (scaled * grad_output)
        if needs_rows or (needs_scale and to_columns is None):
            unscaled = grad @ columns
            if needs_scale:
                to_scale = (unscaled * rows).sum() * grad_output
            to_rows = unscaled.mul_(ctx.scale * grad_output) if needs_rows else None
        elif needs_scale:
            # The same sum from the other side: where rows are given, as stored captions are, a product is saved.
            to_scale = (to_columns * columns).sum() / ctx.scale
        if needs_bias:
            to_bias = grad.sum() * grad_output
        return to_rows, to_columns, to_scale, to_bias, None


def _softmax(
    logits: Tensor, own: int | None, target: Tensor | None, left_out: Tensor | None, weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    # Before columns are left out: 0 * -inf would be NaN.
    positive = (target * logits).sum(1) if target is not None else logits.diagonal(own or 0).clone()
    if left_out is not None:
        logits.masked_fill_(left_out, -torch.inf)
    log_normalizer = logits.logsumexp(1, keepdim=True)
    losses = log_normalizer.squeeze(1) - positive
    grad = logits.sub_(log_normalizer).exp_()
    if target is not None:
        grad.sub_(target)
    else:
        grad.diagonal(own or 0).sub_(1)
    if weights is not None:
        # Not by multiplication: a row without any column has losses that are not finite.
        counts = weights != 0
        losses = torch.where(counts, losses * weights, 0)
        grad = grad.mul_(weights[:, None]).masked_fill_(~counts[:, None], 0)
    return losses.sum(), grad


def _sigmoid(logits: Tensor, positive: Tensor, left_out: Tensor | None) -> tuple[Tensor, Tensor]:
    # softplus(x) - [positive] * x is -log sigmoid(x) of positives and -log sigmoid(-x) of the others.
    grad = torch.sigmoid(logits)
    losses = F.softplus(logits)
    losses.sub_(logits.masked_fill_(~positive, 0))
    grad.sub_(positive.to(grad.dtype))
    if left_out is not None:
        losses.masked_fill_(left_out, 0)
        grad.masked_fill_(left_out, 0)
    return losses.sum(), grad
