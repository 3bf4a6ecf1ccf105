"""InfoNCE as it was written by hand before objectives shared one engine: what `benchmarks.loss_price` compares with.

Without options: every row's positive is its own column, other captions of its image are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def info_nce(
    image_features: Tensor,
    text_features: Tensor,
    all_image_features: Tensor,
    all_text_features: Tensor,
    logit_scale: Tensor,
    image_ids: Tensor,
    all_image_ids: Tensor,
    offset: int,
    block_size: int = 512,
) -> Tensor:
    """Local rows `(B, D)` against gathered columns `(N, D)`; row i is column `offset + i`."""
    ids = (image_ids, all_image_ids, offset)
    features = (image_features, text_features, all_image_features, all_text_features)
    return _BlockedInfoNCE.apply(*features, logit_scale, ids, block_size)


class _BlockedInfoNCE(torch.autograd.Function):
    """Loss and gradients in one pass over row blocks; the backward pass only multiplies by the incoming gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        image_features: Tensor,
        text_features: Tensor,
        all_image_features: Tensor,
        all_text_features: Tensor,
        logit_scale: Tensor,
        ids: tuple[Tensor, Tensor, int],
        block_size: int,
    ) -> Tensor:
        features = (image_features, text_features, all_image_features, all_text_features)
        # Frozen texts need no gradient: a third of the matrix products is saved.
        grads = [torch.zeros_like(x) if needed else None for x, needed in zip(features, ctx.needs_input_grad)]
        grad_scale = torch.zeros_like(logit_scale)
        total = torch.zeros_like(logit_scale)
        with torch.autocast(image_features.device.type, enabled=False):
            for rows in _row_blocks(len(image_features), block_size):
                own = ids[2] + rows.start  # the diagonal on which these rows meet their own columns
                left_out = _left_out(ids[0][rows], ids[1], own)
                for row, column in ((0, 3), (1, 2)):  # images against all texts, texts against all images
                    cosine = features[row][rows] @ features[column].T  # (m, N)
                    loss, grad = _row_losses(cosine, logit_scale, own, left_out)
                    total += loss.sum()
                    grad_scale += cosine.mul_(grad).sum()  # in place: a third matrix of this size is saved
                    if (grad_rows := grads[row]) is not None:
                        torch.mm(grad, features[column], out=grad_rows[rows])
                    if (grad_columns := grads[column]) is not None:
                        grad_columns.addmm_(grad.T, features[row][rows])
        mean = 1 / (2 * len(image_features))
        for grad_features in grads:
            if grad_features is not None:
                grad_features.mul_(logit_scale * mean)
        ctx.save_for_backward(*grads, grad_scale * mean)
        return total * mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        return *(None if grad is None else grad * grad_output for grad in ctx.saved_tensors), None, None


def _left_out(ids: Tensor, all_ids: Tensor, offset: int) -> Tensor:
    """Other samples of the same image, `(m, N)`."""
    own = torch.zeros(len(ids), len(all_ids), dtype=torch.bool, device=ids.device)
    own.diagonal(offset).fill_(True)
    same_image = (ids[:, None] == all_ids) | own
    alike = same_image
    return alike & ~own


def _row_losses(cosine: Tensor, logit_scale: Tensor, own: int, left_out: Tensor) -> tuple[Tensor, Tensor]:
    """Losses of the rows `(m,)` and their gradient with respect to the logits `(m, N)`: softmax - target."""
    logits = (logit_scale * cosine).masked_fill_(left_out, -torch.inf)
    log_normalizer = logits.logsumexp(1, keepdim=True)
    loss = log_normalizer.squeeze(1) - logit_scale * cosine.diagonal(own)
    grad = logits.sub_(log_normalizer).exp_()
    grad.diagonal(own).sub_(1)
    return loss, grad


def _row_blocks(num_rows: int, block_size: int) -> Iterator[slice]:
    for start in range(0, num_rows, block_size):
        yield slice(start, min(start + block_size, num_rows))
