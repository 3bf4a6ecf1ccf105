"""One training step up to the gradients: features -> gather -> loss in float32 -> backward, with or without chunks.

Dimensions: b samples of this rank, W ranks, D embedding.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from core.distributed import all_gather, all_gather_with_grad, rank
from trainer.objectives.engine import blocked_loss
from trainer.objectives.objective import Objective, Rows
from trainer.step.buffers import KeptBuffers

Tensors = dict[str, Tensor]
Chunk = Callable[[], Mapping[str, Tensor]]  # makes what the model takes of some of the rank's samples


@dataclass(frozen=True)
class StepResult:
    """What telemetry and the objective want to know of a step; nothing here carries gradients."""

    loss: Tensor  # scalar, this rank's part; the mean over ranks is the loss of the global batch
    rows: Rows
    scalars: Tensors


def forward_backward(
    model: nn.Module,
    chunks: Sequence[Chunk],
    given: Mapping[str, Tensor],
    objective: Objective,
    state: Mapping[str, Tensor],
    *,
    backward: Callable[[Tensor], None] = torch.autograd.backward,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> StepResult:
    """Add the gradients of one global batch to the parameters; every row is compared with the whole global batch.

    One chunk is run directly. Several are run twice (GradCache: Gao et al. 2021): once without gradient for the
    features, from which loss and feature gradients follow exactly, then with gradient, chunk by chunk, to carry the
    feature gradients on into the model. Only one chunk's inputs and activations exist at a time.

    Call it outside of autocast, on every rank, with the same number of samples on each.

    Args:
        model: `inputs -> (features (n, ...) by name, scalars by name)`: everything that has gradient comes out of it;
            bare or wrapped in DistributedDataParallel.
        chunks: the rank's samples in pieces, in order; each is made when it is needed, and made twice if there are
            several, equal both times.
        given: `(b, ...)` by name, without gradient: features that are not trained, of any float type, and relations
            between samples.
        state: of the objective.
        backward: called with each scalar that is to be differentiated, e.g. `accelerator.backward`. It may scale it
            (fp16) but must not divide it by a number of accumulation steps: all chunks together are one batch.
        autocast: makes the context in which the model, and only the model, runs.
    """
    if len(chunks) == 1:
        with autocast():
            features, scalars = model(chunks[0]())
        loss, rows = _gathered_loss(features, scalars, given, objective, state)
        backward(loss)
        return _result(loss, rows, scalars)
    return _cached_forward_backward(model, chunks, given, objective, state, backward, autocast)


def unwrap(model: nn.Module) -> nn.Module:
    """The model itself, without DistributedDataParallel around it."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def at_least_float32(x: Tensor) -> Tensor:
    """Features as the loss takes them, whatever a tower computes in."""
    return x if x.dtype == torch.float64 else x.float()


def _gathered_loss(
    features: Mapping[str, Tensor],
    scalars: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    objective: Objective,
    state: Mapping[str, Tensor],
) -> tuple[Tensor, Rows]:
    # Before the gather: gradients of near-equal negatives are summed over ranks, which half precision would round off.
    trained = {name: at_least_float32(x) for name, x in features.items()}
    dtype = next(iter(trained.values())).dtype
    own = {**trained, **{name: _like(x, dtype) for name, x in given.items()}}
    # Given values travel as they are stored: caption embeddings at half the bytes.
    everywhere = {
        **{name: all_gather_with_grad(x) for name, x in trained.items()},
        **{name: _like(all_gather(x), dtype) for name, x in given.items()},
    }
    rows = Rows(own, everywhere, rank() * len(next(iter(own.values()))))
    return blocked_loss(objective, rows, scalars, state), rows


def _cached_forward_backward(
    model: nn.Module,
    chunks: Sequence[Chunk],
    given: Mapping[str, Tensor],
    objective: Objective,
    state: Mapping[str, Tensor],
    backward: Callable[[Tensor], None],
    autocast: Callable[[], AbstractContextManager],
) -> StepResult:
    device = next(unwrap(model).parameters()).device
    parts, scalars, random_states = _features_without_grad(model, chunks, autocast, device)
    features = {name: torch.cat([part[name] for part in parts]).requires_grad_() for name in parts[0]}
    loss, rows = _gathered_loss(features, scalars, given, objective, state)
    # Not through `backward`: its loss scaling must come in once, and comes in with the second pass.
    grads = torch.autograd.grad(loss, [*features.values(), *scalars.values()], allow_unused=True)
    grad_features = dict(zip(features, grads))
    grad_scalars = {name: g for name, g in zip(scalars, grads[len(features) :], strict=True) if g is not None}

    start = 0
    for number, (chunk, part, random_state) in enumerate(zip(chunks, parts, random_states, strict=True), 1):
        is_last = number == len(chunks)
        with nullcontext() if is_last else _no_sync(model):
            _set_random_state(random_state, device)
            with autocast():
                chunk_features, chunk_scalars = model(chunk())
            end = start + len(next(iter(part.values())))
            # Its gradient is that of the features times their Jacobian, which is this chunk's part of the loss's.
            products = [
                (at_least_float32(x) * grad_features[name][start:end]).sum() for name, x in chunk_features.items()
            ]
            if is_last:
                products += [chunk_scalars[name] * grad for name, grad in grad_scalars.items()]
            backward(torch.stack(products).sum() if len(products) > 1 else products[0])
            start = end
    return _result(loss, rows, scalars)


@torch.no_grad()
def _features_without_grad(
    model: nn.Module,
    chunks: Sequence[Chunk],
    autocast: Callable[[], AbstractContextManager],
    device: torch.device,
) -> tuple[list[Tensors], Tensors, list[tuple[Tensor, ...]]]:
    """Features of each chunk, the scalars as leaves, and the random state from which each chunk started."""
    module = unwrap(model)
    # Running statistics of batch norms move in the second pass; moving them in both would count every batch twice.
    before = KeptBuffers(module.buffers())
    features, random_states, scalars = [], [], dict[str, Tensor]()
    for chunk in chunks:
        random_states.append(_random_state(device))
        with autocast():
            chunk_features, scalars = module(chunk())  # no name for the inputs: it would keep them beside the next ones
        features.append({name: at_least_float32(x) for name, x in chunk_features.items()})
    before.put_back()
    return features, {name: x.detach().clone().requires_grad_() for name, x in scalars.items()}, random_states


def _result(loss: Tensor, rows: Rows, scalars: Mapping[str, Tensor]) -> StepResult:
    own, everywhere = ({name: x.detach() for name, x in side.items()} for side in (rows.own, rows.everywhere))
    return StepResult(
        loss.detach(), Rows(own, everywhere, rows.offset), {name: x.detach() for name, x in scalars.items()}
    )


def _like(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype) if x.is_floating_point() else x


def _no_sync(model: nn.Module) -> AbstractContextManager:
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def _random_state(device: torch.device) -> tuple[Tensor, ...]:
    """State of the CPU's generator and, where the model is on a GPU, of that GPU's."""
    on_gpu = (torch.cuda.get_rng_state(device),) if device.type == "cuda" else ()
    return torch.get_rng_state(), *on_gpu


def _set_random_state(state: tuple[Tensor, ...], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    for on_gpu in state[1:]:
        torch.cuda.set_rng_state(on_gpu, device)
