"""The loss of an objective over a global batch, in row blocks, so that memory grows with the batch, not its square.

Loss and gradients are computed together, block by block: what is kept for the backward pass is as large as the
features, and no matrix is larger than a block of rows times all that they are compared with. No collectives: features
arrive gathered.
Dimensions: B samples of this rank, N of all ranks.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainer.objectives.objective import Block, Objective, Rows, Tensors


def blocked_loss(objective: Objective, rows: Rows, scalars: Tensors, state: Tensors) -> Tensor:
    """This rank's part of the loss: averaged over ranks (DDP), value and gradient are those of one batch of N samples.

    Float64 stays float64; other floats are computed in float32, also under autocast.

    Args:
        rows: features and columns; those that require gradient receive it.

    Returns:
        A scalar: the sum over this rank's rows, divided by the global number of terms, times the number of ranks.
    """
    rows = Rows(_exact(rows.own), _exact(rows.everywhere), rows.offset)
    names = [("own", name) for name, x in rows.own.items() if x.requires_grad]
    names += [("everywhere", name) for name, x in rows.everywhere.items() if x.requires_grad]
    names += [("scalars", name) for name, x in scalars.items() if x.requires_grad]
    sides = {"own": rows.own, "everywhere": rows.everywhere, "scalars": scalars}
    return _Blocked.apply(objective, rows, scalars, state, names, *(sides[side][name] for side, name in names))


def whole_loss(objective: Objective, rows: Rows, scalars: Tensors, state: Tensors) -> Tensor:
    """The same by plain autograd over one block of all rows: what `blocked_loss` has to equal."""
    block = Block(rows.own, rows.everywhere, rows.offset, scalars, state)
    total: Any = sum(objective.terms(block))
    return total * _weight(objective, rows, total)


class _Blocked(torch.autograd.Function):
    """Loss and gradients in one pass over row blocks; the backward pass only multiplies by the incoming gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        objective: Objective,
        rows: Rows,
        scalars: Tensors,
        state: Tensors,
        names: list[tuple[str, str]],
        *tensors: Tensor,
    ) -> Tensor:
        grads = [torch.zeros_like(x) for x in tensors]
        everywhere = _leaves("everywhere", rows.everywhere, names)
        leaves = {"everywhere": everywhere, "scalars": _leaves("scalars", scalars, names)}
        some = next(x for x in [*rows.own.values(), *scalars.values()] if x.is_floating_point())
        total = torch.zeros((), dtype=some.dtype, device=some.device)
        weight = _weight(objective, rows, total)
        num_rows = len(next(iter(rows.own.values())))
        with torch.autocast(some.device.type, enabled=False), torch.enable_grad():
            for part in _row_blocks(num_rows, objective.block_size or num_rows):
                own = _leaves("own", {name: x[part] for name, x in rows.own.items()}, names)
                block = Block(own, everywhere, rows.offset + part.start, leaves["scalars"], state)
                leaves["own"] = own
                wanted = [leaves[side][name] for side, name in names]
                for term in objective.terms(block):
                    total += term.detach()
                    _add_gradients(
                        term, wanted, [g[part] if s == "own" else g for g, (s, _) in zip(grads, names)], weight
                    )
        ctx.save_for_backward(*grads)
        return total * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, None, None, *(grad * grad_output for grad in ctx.saved_tensors)


def _add_gradients(term: Tensor, wanted: list[Tensor], grads: list[Tensor], weight: Tensor) -> None:
    if not wanted or not term.requires_grad:
        return
    found = torch.autograd.grad(term, wanted, weight, allow_unused=True)
    for grad, more in zip(grads, found, strict=True):
        if more is not None:
            grad += more


def _leaves(side: str, tensors: Tensors, names: list[tuple[str, str]]) -> dict[str, Tensor]:
    return {name: x.detach().requires_grad_((side, name) in names) for name, x in tensors.items()}


def _weight(objective: Objective, rows: Rows, like: Tensor) -> Tensor:
    """1 / number of terms, times the ranks, since DDP divides by them; of the type of `like` and beside it."""
    num_own, num_all = (len(next(iter(side.values()))) for side in (rows.own, rows.everywhere))
    # Not divided as a number of its own: that would be rounded to float32. Nor read by the host, who would wait for it.
    num_terms = objective.num_terms(rows.everywhere)
    terms = num_terms.to(like.dtype) if isinstance(num_terms, Tensor) else torch.full_like(like, num_terms)
    return (num_all / num_own) / terms


def _exact(tensors: Tensors) -> dict[str, Tensor]:
    """Floats as float32 or float64."""
    return {name: x.float() if x.is_floating_point() and x.dtype != torch.float64 else x for name, x in tensors.items()}


def _row_blocks(num_rows: int, block_size: int) -> Iterator[slice]:
    for start in range(0, num_rows, block_size):
        yield slice(start, min(start + block_size, num_rows))
