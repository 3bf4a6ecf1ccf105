"""The only door to torch.distributed: ranks, gathers and reductions that also work in one process without a group.

Every function here is collective unless it says otherwise: all ranks call it, in the same order.
"""

import hashlib
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from core.errors import DistributedError, ShardclipError

T = TypeVar("T")


def rank() -> int:
    """Number of this process, from 0; not collective."""
    return dist.get_rank() if _is_grouped() else 0


def world_size() -> int:
    """Number of processes; not collective."""
    return dist.get_world_size() if _is_grouped() else 1


def is_main() -> bool:
    """Whether this process writes files and prints; not collective."""
    return rank() == 0


def barrier() -> None:
    """Wait for all ranks."""
    if world_size() > 1:
        dist.barrier()


def all_gather_with_grad(x: Tensor) -> Tensor:
    """Concatenate the `(b, ...)` of all ranks to `(W * b, ...)`, in rank order; gradients flow back to every rank.

    The gradient that a rank receives is the sum over all ranks of the gradients with respect to its rows. With losses
    averaged over their own rows and gradients averaged over ranks (DDP), this is the gradient of one big batch.
    """
    return _GatherWithGrad.apply(x) if world_size() > 1 else x


def all_gather(x: Tensor) -> Tensor:
    """Concatenate the `(b, ...)` of all ranks to `(W * b, ...)`, in rank order, without gradient. Equal shapes only."""
    x = x.detach()
    if world_size() == 1:
        return x
    gathered = x.new_empty(world_size() * x.shape[0], *x.shape[1:])
    dist.all_gather_into_tensor(gathered, x.contiguous())
    return gathered


def all_gather_rows(x: Tensor) -> Tensor:
    """Concatenate the `(n_r, ...)` of all ranks, in rank order, without gradient; `n_r` may differ and may be 0."""
    x = x.detach()
    if world_size() == 1:
        return x
    counts = all_gather(torch.tensor([len(x)], device=x.device)).tolist()
    padded = x.new_zeros(max(counts), *x.shape[1:])
    padded[: len(x)] = x
    rows = all_gather(padded).split(max(counts)) if max(counts) else [x] * len(counts)
    return torch.cat([part[:count] for part, count in zip(rows, counts, strict=True)])


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum over ranks, as a new tensor without gradient."""
    return _all_reduce(x, dist.ReduceOp.SUM)


def all_reduce_max(x: Tensor) -> Tensor:
    """Largest over ranks, elementwise, as a new tensor without gradient."""
    return _all_reduce(x, dist.ReduceOp.MAX)


def broadcast_object(obj: Any, source: int = 0) -> Any:
    """The (picklable) object of rank `source`, on every rank."""
    if world_size() == 1:
        return obj
    box = [obj]
    dist.broadcast_object_list(box, src=source)
    return box[0]


def on_main(act: Callable[[], T]) -> T:
    """Let rank 0 act and give its (picklable) result, or its ShardclipError, to every rank.

    Files that a run shares are opened so: were rank 0 alone to fail, the others would wait for it forever.

    Raises:
        ShardclipError: on every rank, that of rank 0.
        DistributedError: on the others, where rank 0 failed in another way and raises that.
    """
    outcome: Any = None
    failure: Exception | None = None
    if is_main():
        try:
            outcome = act()
        except Exception as error:  # whatever it is: the others wait for this rank
            failure = error
            outcome = error if isinstance(error, ShardclipError) else _not_done(0, _named(error))
    outcome = broadcast_object(outcome)
    if failure is not None:
        raise failure
    if isinstance(outcome, ShardclipError):
        raise outcome
    return outcome


def act_together(act: Callable[[], T]) -> T:
    """Let every rank do its share and keep its own result, once all of them are done.

    Raises:
        DistributedError: on the ranks whose share went well, where that of another did not; that one raises its own.
    """
    outcome: Any = None
    failure: Exception | None = None
    try:
        outcome = act()
    except Exception as error:  # whatever it is: the others would wait for this rank at their next gather
        failure = error
    said = gather_objects(None if failure is None else _named(failure))
    if failure is not None:
        raise failure
    for number, sentence in enumerate(said):
        if sentence is not None:
            raise _not_done(number, sentence)
    return outcome


def broadcast_tensors(tensors: Iterable[Tensor], source: int = 0) -> None:
    """Overwrite the tensors of every rank with those of rank `source`."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=source)


def gather_objects(obj: Any) -> list[Any]:
    """The (picklable) objects of all ranks, in rank order, on every rank."""
    objects: list[Any] = [obj] * world_size()
    if world_size() > 1:
        dist.all_gather_object(objects, obj)
    return objects


def is_first_to_say(sentence: str) -> bool:
    """Whether no other process of the group has asked this of the same sentence; not collective.

    The answer comes from the group's store, which outlives a process that has left.
    """
    if not _is_grouped():
        return True
    key = hashlib.sha256(sentence.encode()).hexdigest()
    return bool(dist.distributed_c10d._get_default_store().add(f"said/{key}", 1) == 1)


def leave_group() -> None:
    """Take the process group down in order, when no other rank waits for this one; the last call of a process.

    Left to the interpreter's end, the group's own threads now and then outlive what they need, and the process aborts
    (SIGABRT, "terminate called without an active exception") after all is done.
    """
    if _is_grouped():
        dist.destroy_process_group()


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _not_done(number: int, why: str) -> DistributedError:
    return DistributedError(f"Rank {number} could not do its share: {why}")


def _is_grouped() -> bool:
    return dist.is_available() and dist.is_initialized()


def _all_reduce(x: Tensor, operation: Any) -> Tensor:
    reduced = x.detach().clone()
    if world_size() > 1:
        dist.all_reduce(reduced, operation)
    return reduced


class _GatherWithGrad(torch.autograd.Function):
    """all_gather forward, reduce_scatter (sum) backward; NCCL and gloo have both."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return all_gather(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        own = grad.new_empty(grad.shape[0] // world_size(), *grad.shape[1:])
        dist.reduce_scatter_tensor(own, grad.contiguous())
        return own
