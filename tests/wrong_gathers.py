"""Gathers and losses over ranks that are wrong in the ways of the field: each function plants one in this process."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import trainer.step.forward_backward
from core.distributed import all_gather, all_gather_with_grad, rank, world_size
from trainer.objectives.engine import whole_loss
from trainer.objectives.objective import Rows


def gather_without_gradient() -> None:
    trainer.step.forward_backward.all_gather_with_grad = all_gather


def gather_with_the_own_rows_gradient_only() -> None:
    def gather(x: Tensor) -> Tensor:
        rows = list(all_gather(x).split(len(x)))
        rows[rank()] = x
        return torch.cat(rows)

    trainer.step.forward_backward.all_gather_with_grad = gather


class _Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * world_size()


def gather_scaled_by_world_size() -> None:
    trainer.step.forward_backward.all_gather_with_grad = lambda x: all_gather_with_grad(_Scale.apply(x))


def gradients_summed_instead_of_averaged() -> None:
    real = trainer.step.forward_backward._gathered_loss

    def summed(*args: Any) -> Any:
        loss, result = real(*args)
        return _Scale.apply(loss), result

    trainer.step.forward_backward._gathered_loss = summed


def negatives_of_the_own_rank_only() -> None:
    trainer.step.forward_backward.all_gather_with_grad = trainer.step.forward_backward.all_gather = lambda x: x
    trainer.step.forward_backward.rank = lambda: 0


def ranks_in_reverse_order() -> None:
    def gather(x: Tensor) -> Tensor:
        return torch.cat(all_gather_with_grad(x).split(len(x))[::-1])

    trainer.step.forward_backward.all_gather_with_grad = gather


def offset_of_the_first_rank() -> None:
    trainer.step.forward_backward.rank = lambda: 0


def whole_loss_on_every_rank() -> None:
    """The classic: each rank computes the loss of the whole batch, in which only its own rows carry gradient."""
    gather_with_the_own_rows_gradient_only()
    local_loss = trainer.step.forward_backward._gathered_loss

    def of_everything(features: Any, scalars: Any, given: Any, objective: Any, state: Any) -> Any:
        rows = local_loss(features, scalars, given, objective, state)[1]
        # The scale is seen whole by every rank, so that only the features' gradient is short.
        return whole_loss(objective, Rows(rows.everywhere, rows.everywhere, 0), scalars, state), rows

    trainer.step.forward_backward._gathered_loss = of_everything


WRONG_GATHERS = (
    gather_without_gradient,
    gather_with_the_own_rows_gradient_only,
    gather_scaled_by_world_size,
    gradients_summed_instead_of_averaged,
    negatives_of_the_own_rank_only,
    ranks_in_reverse_order,
    offset_of_the_first_rank,
    whole_loss_on_every_rank,
)
