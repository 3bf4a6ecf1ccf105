"""The trainer proves itself before step 1: the gradients of its real loss path are those of one process.

Gathers, accumulation, blocks, averaging and state each have well-known ways of being wrong that still train, only
worse. Nothing is asked of the objective: its own terms by plain autograd over the whole batch are the reference.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from core.distributed import gather_objects, rank, world_size
from core.errors import DistributedError
from core.full_float32 import full_float32
from trainer.data.names import IMAGE_ID, LABEL, NUM_CAPTIONS, TEXT
from trainer.objectives.engine import whole_loss
from trainer.objectives.objective import IMAGE, IMAGE2, Objective, Rows
from trainer.step.forward_backward import Chunk, at_least_float32, forward_backward, unwrap

Tensors = Mapping[str, Tensor]
ROWS_PER_CHUNK = 3
ROUNDS = 2  # with state: what the first one leaves decides the second
TOLERANCE = 1e-3  # relative, of a parameter group's gradient; float32 without TF32, on CPU and GPU


@dataclass(frozen=True)
class ProofInputs:
    """What a batch of the run looks like.

    Attributes:
        image: shape of one input, as the model takes it: `(3, S, S)` of a picture, `(W,)` of stored tower outputs.
        given_text: width of captions' embeddings that are given; None where they are trained or play no part.
        tokens: `(k, L)` captions as token ids, for a text tower that is trained: examples to draw from.
        captions: how many of each sample a batch has, where it has all of them; 0: the one that is drawn.
    """

    image: tuple[int, ...]
    given_text: int | None = None
    tokens: Tensor | None = None
    captions: int = 0


def prove_gradients(
    model: nn.Module,
    objective: Objective,
    state: Tensors,
    inputs: ProofInputs,
    *,
    accumulate: int = 1,
    seed: int = 0,
    tolerance: float = TOLERANCE,
) -> dict[str, float]:
    """Compare the gradients of the real path (ranks x accumulation x blocks x views) with a one-process reference.

    The batch is tiny, seeded and the same on all ranks, of which each takes its slice; ids and labels in it repeat,
    within ranks and over them. The reference is plain autograd over the whole of it. Both run in evaluation mode (batch
    statistics would differ by design), without autocast, TF32 and compilation. An objective with state does two rounds,
    and every rank's state must be the reference's. Then each relation that the objective asks for must matter to it.
    Afterwards gradients are cleared; modes, buffers, state and random states are as they were.

    Args:
        model: as for `forward_backward`; the bare model has `parameter_groups() -> {name: list of parameters}`.
        accumulate: chunks per step and rank, as in the run.
        tolerance: largest relative error of a group's gradient.

    Returns:
        For each group with trainable parameters, |gradient| / |reference gradient|, of the rank that is furthest off.

    Raises:
        DistributedError: on all ranks, if any group on any rank is outside the tolerance, a state differs, or the
            objective gives the same loss whatever the ids or labels.
    """
    module: Any = unwrap(model)
    groups = {name: [p for p in params if p.requires_grad] for name, params in module.parameter_groups().items()}
    groups = {name: params for name, params in groups.items() if params}
    small = replace(objective, block_size=ROWS_PER_CHUNK - 1)  # blocks smaller than a rank's part
    rounds, ours, theirs = ROUNDS if state else 1, dict(state), dict(state)
    worst: dict[str, tuple[float, float]] = {}
    with _plain_evaluation(model):
        for number in range(rounds):
            batch, given = _batch(inputs, objective, accumulate, seed + number, next(module.parameters()))
            model.zero_grad(set_to_none=True)
            rows, loss = _real_round(model, small, ours, batch, given, accumulate)
            actual = {name: _gradient(params) for name, params in groups.items()}
            model.zero_grad(set_to_none=True)
            whole, expected_loss = _reference_round(module, objective, theirs, batch, given)
            expected = {name: _gradient(params) for name, params in groups.items()}
            model.zero_grad(set_to_none=True)
            figures = {name: _compare(actual[name], expected[name]) for name in groups}
            figures["the loss"] = _compare(_mean_over_ranks(loss), expected_loss)
            worst |= _worst_over_ranks(figures, tolerance, accumulate)
            ours, theirs = objective.next_state(rows, ours), objective.next_state(whole, theirs)
            _expect_same_state(ours, theirs, tolerance)
        _expect_relations_to_matter(objective, *_whole_features(module, batch), state, given, seed)
    return {name: ratio for name, (ratio, _) in worst.items() if name in groups}


def _real_round(
    model: nn.Module, objective: Objective, state: Tensors, batch: Tensors, given: Tensors, accumulate: int
) -> tuple[Rows, Tensor]:
    """The run's own path over this rank's slice; gradients are left in the parameters."""
    own = accumulate * ROWS_PER_CHUNK
    starts = range(rank() * own, (rank() + 1) * own, ROWS_PER_CHUNK)
    chunks: list[Chunk] = [partial(_cut, batch, slice(start, start + ROWS_PER_CHUNK)) for start in starts]
    mine = _cut(given, slice(rank() * own, (rank() + 1) * own))
    result = forward_backward(model, chunks, mine, objective, state)
    return result.rows, result.loss


def _reference_round(
    module: Any, objective: Objective, state: Tensors, batch: Tensors, given: Tensors
) -> tuple[Rows, Tensor]:
    """Plain autograd over the whole batch; gradients are left in the parameters."""
    features, scalars = _whole_features(module, batch)
    together = {**features, **given}
    rows = Rows(together, together, 0)
    loss = whole_loss(objective, rows, scalars, state)
    loss.backward()
    detached = {name: x.detach() for name, x in together.items()}
    return Rows(detached, detached, 0), loss.detach()


def _whole_features(module: Any, batch: Tensors) -> tuple[dict[str, Tensor], Tensors]:
    # Checkpointed in pieces: with many ranks the whole global batch's activations would not fit in one of them.
    num_rows = len(next(iter(batch.values())))
    pieces = [_cut(batch, slice(start, start + 16)) for start in range(0, num_rows, 16)]
    outputs = [checkpoint(module, piece, use_reentrant=False) for piece in pieces]
    features = {name: at_least_float32(torch.cat([part[name] for part, _ in outputs])) for name in outputs[0][0]}
    return features, outputs[0][1]


@torch.no_grad()
def _expect_relations_to_matter(
    objective: Objective, features: Tensors, scalars: Tensors, state: Tensors, given: Tensors, seed: int
) -> None:
    """Raise where the loss does not depend on a column that the objective asks for: nobody would notice in training.

    With random features of the same shapes, for an untrained tower may give all rows nearly the same; and in float64,
    for SigLIP's negatives begin at a millionth of its loss.
    """
    generator = torch.Generator().manual_seed(seed)
    random = {
        name: F.normalize(torch.randn(x.shape, generator=generator), dim=-1).to(x.device)
        for name, x in features.items()
    }
    random, scalars, state, given = (_exact(tensors) for tensors in (random, scalars, state, given))

    def loss(columns: Tensors) -> Tensor:
        together = {**random, **columns}
        return whole_loss(objective, Rows(together, together, 0), scalars, state)

    usual = loss(given)
    for name in objective.columns:
        distinct = torch.arange(len(given[name]), device=given[name].device)
        # A start may hide a relation nearly all (SigLIP's bias of -10), an objective that ignores it hides it all.
        if torch.equal(loss({**given, name: distinct}), usual):
            raise DistributedError(
                f"objective proof: {type(objective).__name__} asks for '{name}' and gives the same loss, "
                f"{float(usual):.6g}, whether its values repeat or not: it does not use it. Repair the objective, "
                f"or take '{name}' out of its columns."
            )


def _batch(
    inputs: ProofInputs, objective: Objective, accumulate: int, seed: int, like: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the model takes of the global batch, and what the objective is given; equal on all ranks."""
    generator = torch.Generator().manual_seed(seed)
    num_rows = world_size() * accumulate * ROWS_PER_CHUNK
    batch = {name: _pictures(inputs.image, num_rows, generator) for name in (IMAGE, IMAGE2)[: objective.views]}
    many = (num_rows, inputs.captions) if inputs.captions else (num_rows,)
    given: dict[str, Tensor] = {}
    if inputs.tokens is not None and objective.needs_text:
        batch[TEXT] = inputs.tokens.cpu()[torch.randint(len(inputs.tokens), many, generator=generator)]
    elif inputs.given_text is not None and objective.needs_text:
        given[TEXT] = F.normalize(torch.randn(*many, inputs.given_text, generator=generator), dim=-1)
    if inputs.captions:
        given[NUM_CAPTIONS] = 1 + torch.arange(num_rows) % inputs.captions
        if TEXT in given:
            given[TEXT][torch.arange(inputs.captions) >= given[NUM_CAPTIONS][:, None]] = 0
    # Neighbours repeat, and ranks repeat each other.
    ids = torch.arange(num_rows) * 2 // 3 % max(2, num_rows // 2)
    relations = {IMAGE_ID: ids, LABEL: ids % 2}
    given |= {name: relations.get(name, relations[LABEL]) for name in objective.columns}
    return _beside(batch, like), _beside(given, like)


def _pictures(shape: tuple[int, ...], num_rows: int, generator: torch.Generator) -> Tensor:
    """Inputs `(N, *shape)`."""
    if len(shape) != 3:
        return torch.randn(num_rows, *shape, generator=generator)
    # Coarse patches: towers tell them apart, where fine noise would look the same to them all.
    return F.interpolate(torch.randn(num_rows, 3, 4, 4, generator=generator), size=shape[1:], mode="nearest")


def _beside(tensors: Tensors, like: Tensor) -> dict[str, Tensor]:
    return {name: x.to(like) if x.is_floating_point() else x.to(like.device) for name, x in tensors.items()}


def _exact(tensors: Tensors) -> dict[str, Tensor]:
    """In float64, on the host: some devices have none."""
    return {name: x.cpu().double() if x.is_floating_point() else x.cpu() for name, x in tensors.items()}


def _cut(tensors: Tensors, rows: slice) -> dict[str, Tensor]:
    return {name: x[rows] for name, x in tensors.items()}


def _mean_over_ranks(loss: Tensor) -> Tensor:
    return loss.new_tensor(sum(gather_objects(float(loss))) / world_size())


def _worst_over_ranks(
    figures: dict[str, tuple[float, float]], tolerance: float, accumulate: int
) -> dict[str, tuple[float, float]]:
    everywhere = gather_objects(figures)
    worst = {name: max((each[name] for each in everywhere), key=_furthest_off) for name in figures}
    for name, (ratio, error) in worst.items():
        if not error <= tolerance:
            raise DistributedError(_sentence(name, ratio, error, tolerance, accumulate))
    return worst


def _furthest_off(figure: tuple[float, float]) -> float:
    return figure[1] if math.isfinite(figure[1]) else math.inf


def _expect_same_state(ours: Tensors, theirs: Tensors, tolerance: float) -> None:
    """Raise on all ranks where the state of any is not that of one process."""
    errors = {name: _compare(ours[name].double().flatten(), theirs[name].double().flatten())[1] for name in theirs}
    for name in errors:
        error = max(each[name] for each in gather_objects(errors))
        if not error <= tolerance:
            raise DistributedError(
                f"objective proof: after a step the state '{name}' differs from that of one process by {error:.2g} of "
                f"it, processes {world_size()}: it is averaged over processes, or made of a rank's own rows. Make it "
                "of `rows.everywhere` alone."
            )


def _gradient(params: list[nn.Parameter]) -> Tensor:
    """All gradients of a group as one vector; zeros where there is none."""
    return torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in params])


def _compare(actual: Tensor, expected: Tensor) -> tuple[float, float]:
    """Ratio of the lengths, and length of the difference relative to the expected length."""
    length = expected.norm().clamp_min(torch.finfo(expected.dtype).tiny)
    return (actual.norm() / length).item(), ((actual - expected).norm() / length).item()


def _sentence(name: str, ratio: float, error: float, tolerance: float, accumulate: int) -> str:
    what = name if name == "the loss" else f"the gradient of '{name}'"
    return (
        f"gradient proof: {what} has {ratio:.4g} times the length of what one process gives and "
        f"differs from it by {error:.2g} of it (at most {tolerance:g}), processes {world_size()}, chunks {accumulate}: "
        f"{_likely_cause(ratio, error, accumulate)}. Repair the gather or the step before training."
    )


def _likely_cause(ratio: float, error: float, accumulate: int) -> str:
    if not math.isfinite(error):
        return "it is not finite, or the reference is zero"
    if ratio == 0:
        return "no gradient arrives at all"
    is_only_scaled = abs(error - abs(ratio - 1)) < 0.01 * error
    factors = (
        (1 / world_size(), "gathered features pass no gradient back to the processes they came from"),
        (world_size(), "gradients are summed over processes instead of averaged"),
        (1 / accumulate, "the loss is divided by the number of chunks"),
        (accumulate, "each chunk counts as a batch of its own"),
    )
    causes = [cause for factor, cause in factors if factor != 1 and abs(ratio / factor - 1) < 0.01]
    if is_only_scaled and causes:
        return "probably " + ", or ".join(causes)
    if error < 0.05:
        return "it is only rounded, as when a part of the model computes in half precision"
    if is_only_scaled:
        return "only its length is wrong, as where something is multiplied or divided once too often"
    return "its direction is wrong too, as when only a part of the gathered features pass their gradient back"


@contextmanager
def _plain_evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode in full precision, uncompiled; modes, buffers and random states are put back at the end."""
    module = unwrap(model)
    modes = [(part, part.training) for part in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    device = next(module.parameters()).device
    model.eval()
    try:
        with (
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            torch.compiler.set_stance("force_eager"),
            # A lower precision's error would depend on the batch that a product is part of.
            full_float32(),
            torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False),
            _without_autocast(module),
        ):
            yield
    finally:
        with torch.no_grad():
            for buffer, saved in buffers:
                buffer.copy_(saved)
        for part, is_training in modes:
            part.training = is_training


@contextmanager
def _without_autocast(module: Any) -> Iterator[None]:
    """Accelerate puts autocast around the forward of a prepared model, and keeps the one it replaced."""
    if "_original_forward" not in module.__dict__:
        yield
        return
    prepared = module.forward
    module.forward = module._original_forward
    try:
        yield
    finally:
        module.forward = prepared
