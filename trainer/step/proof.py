"""The trainer proves itself before step 1: the gradients of its real loss path are those of one process.

Gathers, accumulation, blocks and DDP's averaging each have well-known ways of being wrong that still train, only worse.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from core.distributed import gather_objects, rank, world_size
from core.errors import DistributedError
from trainer.losses.infonce import InfoNCE
from trainer.step import forward_backward, unwrap

ROWS_PER_CHUNK = 2
TOLERANCE = 1e-3  # relative, of a parameter group's gradient; float32 without TF32, on CPU and GPU


def prove_gradients(
    model: nn.Module,
    loss_fn: InfoNCE,
    *,
    input_shape: tuple[int, ...],
    embed_dim: int,
    accumulate: int = 1,
    seed: int = 0,
    tolerance: float = TOLERANCE,
) -> dict[str, float]:
    """Compare the gradients of the real path (ranks x accumulation x blocks) with a one-process reference.

    The batch is tiny, seeded and the same on all ranks, of which each takes its slice; the reference is plain autograd
    over the whole of it. Both run in evaluation mode (batch statistics would differ by design), without autocast, TF32
    and compilation. Afterwards gradients are cleared; modes, buffers and random states are as they were.

    Args:
        model: as for `forward_backward`; the bare model has `parameter_groups() -> {name: list of parameters}`.
        loss_fn: the run's loss; `for_proof` and `reference` say what is compared.
        input_shape: of one sample, as the model takes it: `(3, S, S)` of a picture, `(W,)` of stored tower outputs.
        embed_dim: width of the text features.
        accumulate: chunks per step and rank, as in the run.
        tolerance: largest relative error of a group's gradient.

    Returns:
        For each group with trainable parameters, |gradient| / |reference gradient|, of the rank that is furthest off.

    Raises:
        DistributedError: on all ranks, if any group on any rank is outside the tolerance.
    """
    module: Any = unwrap(model)
    groups = {name: [p for p in params if p.requires_grad] for name, params in module.parameter_groups().items()}
    groups = {name: params for name, params in groups.items() if params}
    like = next(module.parameters())
    images, text_features = _batch(accumulate, input_shape, embed_dim, seed, like)
    rows = slice(rank() * accumulate * ROWS_PER_CHUNK, (rank() + 1) * accumulate * ROWS_PER_CHUNK)
    ids = torch.arange(len(images), device=like.device)

    with _plain_evaluation(model):
        model.zero_grad(set_to_none=True)
        forward_backward(
            model,
            images[rows].split(ROWS_PER_CHUNK),
            text_features[rows],
            ids[rows],
            loss_fn.for_proof(),
        )
        actual = {name: _gradient(params) for name, params in groups.items()}
        model.zero_grad(set_to_none=True)
        _reference_loss(module, images, text_features, loss_fn.reference).backward()
        expected = {name: _gradient(params) for name, params in groups.items()}
        model.zero_grad(set_to_none=True)

    figures = {name: _compare(actual[name], expected[name]) for name in groups}
    everywhere = gather_objects(figures)
    worst = {name: max((each[name] for each in everywhere), key=lambda figure: figure[1]) for name in groups}
    for name, (ratio, error) in worst.items():
        if not error <= tolerance:
            raise DistributedError(_sentence(name, ratio, error, tolerance, accumulate))
    return {name: ratio for name, (ratio, _) in worst.items()}


def _batch(
    accumulate: int, input_shape: tuple[int, ...], embed_dim: int, seed: int, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Inputs `(N, *input_shape)` and unit-length text features `(N, E)` of the global batch, equal on all ranks."""
    generator = torch.Generator().manual_seed(seed)
    num_rows = world_size() * accumulate * ROWS_PER_CHUNK
    # Coarse patches: towers tell them apart, where fine noise would look the same to them all.
    is_picture = len(input_shape) == 3
    inputs = torch.randn(num_rows, *((3, 4, 4) if is_picture else input_shape), generator=generator)
    if is_picture:
        inputs = F.interpolate(inputs, size=input_shape[1:], mode="nearest")
    text_features = F.normalize(torch.randn(num_rows, embed_dim, generator=generator), dim=1)
    return inputs.to(like), text_features.to(like)


def _reference_loss(
    module: nn.Module, images: Tensor, text_features: Tensor, reference: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Tensor:
    # Checkpointed in pieces: with many ranks the whole global batch's activations would not fit in one of them.
    outputs = [checkpoint(module, part, use_reentrant=False) for part in images.split(16)]
    image_features = torch.cat([features for features, _ in outputs])
    logit_scale = outputs[0][1]
    return reference(image_features, text_features.to(image_features.dtype), logit_scale)


def _gradient(params: list[nn.Parameter]) -> Tensor:
    """All gradients of a group as one vector; zeros where there is none."""
    return torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in params])


def _compare(actual: Tensor, expected: Tensor) -> tuple[float, float]:
    """Ratio of the lengths, and length of the difference relative to the expected length."""
    length = expected.norm().clamp_min(torch.finfo(expected.dtype).tiny)
    return (actual.norm() / length).item(), ((actual - expected).norm() / length).item()


def _sentence(name: str, ratio: float, error: float, tolerance: float, accumulate: int) -> str:
    return (
        f"gradient proof: the gradient of '{name}' has {ratio:.4g} times the length of the one-process gradient and "
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
            _full_float32(),
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
def _full_float32() -> Iterator[None]:
    """No TF32: a product's error would depend on the batch that it is part of."""
    matmul = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(matmul)


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
