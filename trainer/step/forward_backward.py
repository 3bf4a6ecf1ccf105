"""One training step up to the gradients: features -> gather -> loss in float32 -> backward, with or without chunks.

Dimensions: b pairs of this rank, W ranks, D embedding.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from core.distributed import all_gather, all_gather_with_grad, rank


@dataclass(frozen=True)
class StepResult:
    """What telemetry wants to know of a step; nothing here carries gradients."""

    loss: Tensor  # scalar, mean over the rows of this rank
    image_features: Tensor  # (b, D)
    text_features: Tensor  # (b, D)
    all_text_features: Tensor  # (W * b, D)
    all_image_ids: Tensor  # (W * b,)
    offset: int  # index of this rank's first row among the gathered ones
    logit_scale: Tensor  # scalar


def forward_backward(
    model: nn.Module,
    image_chunks: Sequence[Tensor],
    text_features: Tensor,
    image_ids: Tensor,
    loss_fn: Callable[..., Tensor],
    *,
    backward: Callable[[Tensor], None] = torch.autograd.backward,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> StepResult:
    """Add the gradients of one global batch to the parameters; every row's negatives are the whole global batch.

    One chunk is run directly. Several are run twice (GradCache: Gao et al. 2021): once without gradient for the
    features, from which loss and feature gradients follow exactly, then with gradient, chunk by chunk, to carry the
    feature gradients on into the model. Only one chunk's activations exist at a time.

    Call it outside of autocast, on every rank, with the same number of pairs on each.

    Args:
        model: `images -> (image_features (n, D), logit_scale)`, bare or wrapped in DistributedDataParallel.
        image_chunks: the rank's images in pieces; read twice if there are several.
        text_features: `(b, D)`, unit length, any float type; gathered with gradient only if it requires one.
        image_ids: `(b,)` integers; pairs of the same image share it.
        loss_fn: one of `trainer.losses.LOSSES`.
        backward: called with each scalar that is to be differentiated, e.g. `accelerator.backward`. It may scale it
            (fp16) but must not divide it by a number of accumulation steps: all chunks together are one batch.
        autocast: makes the context in which the model, and only the model, runs.
    """
    if len(image_chunks) == 1:
        with autocast():
            image_features, logit_scale = model(image_chunks[0])
        loss, result = _gathered_loss(image_features, text_features, logit_scale, image_ids, loss_fn)
        backward(loss)
        return result
    return _cached_forward_backward(model, image_chunks, text_features, image_ids, loss_fn, backward, autocast)


def unwrap(model: nn.Module) -> nn.Module:
    """The model itself, without DistributedDataParallel around it."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def _gathered_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    image_ids: Tensor,
    loss_fn: Callable[..., Tensor],
) -> tuple[Tensor, StepResult]:
    # Before the gather: gradients of near-equal negatives are summed over ranks, which half precision would round off.
    image_features = _at_least_float32(image_features)
    # Frozen texts travel as they are stored, at half the bytes.
    gather_text = all_gather_with_grad if text_features.requires_grad else all_gather
    all_text_features = gather_text(text_features).to(image_features.dtype)
    text_features = text_features.to(image_features.dtype)
    all_image_ids = all_gather(image_ids)
    offset = rank() * len(image_ids)
    loss = loss_fn(
        image_features,
        text_features,
        all_gather_with_grad(image_features),
        all_text_features,
        logit_scale,
        image_ids,
        all_image_ids,
        offset,
    )
    kept = (image_features.detach(), text_features.detach(), all_text_features.detach(), all_image_ids)
    return loss, StepResult(loss.detach(), *kept, offset, logit_scale.detach())


def _cached_forward_backward(
    model: nn.Module,
    image_chunks: Sequence[Tensor],
    text_features: Tensor,
    image_ids: Tensor,
    loss_fn: Callable[..., Tensor],
    backward: Callable[[Tensor], None],
    autocast: Callable[[], AbstractContextManager],
) -> StepResult:
    chunks, logit_scale, random_states = _features_without_grad(model, image_chunks, autocast)
    features = torch.cat(chunks).requires_grad_()
    text = text_features.detach().requires_grad_(text_features.requires_grad)
    loss, result = _gathered_loss(features, text, logit_scale, image_ids, loss_fn)
    # Not through `backward`: its loss scaling must come in once, and comes in with the second pass.
    leaves = [features, logit_scale] + ([text] if text.requires_grad else [])
    grad_features, grad_logit_scale, *grad_text = torch.autograd.grad(loss, leaves)

    grads = grad_features.split([len(chunk) for chunk in chunks])
    for number, (images, grad, random_state) in enumerate(zip(image_chunks, grads, random_states, strict=True), 1):
        is_last = number == len(image_chunks)
        with nullcontext() if is_last else _no_sync(model):
            _set_random_state(random_state, images.device)
            with autocast():
                chunk_features, logit_scale = model(images)
            # Its gradient is `grad` times the Jacobian of the features, which is this chunk's part of the loss's.
            surrogate = (_at_least_float32(chunk_features) * grad).sum()
            if is_last:
                surrogate = surrogate + logit_scale * grad_logit_scale
                if grad_text:
                    surrogate = surrogate + (text_features * grad_text[0]).sum()
            backward(surrogate)
    return result


@torch.no_grad()
def _features_without_grad(
    model: nn.Module, image_chunks: Sequence[Tensor], autocast: Callable[[], AbstractContextManager]
) -> tuple[list[Tensor], Tensor, list[tuple[Tensor, ...]]]:
    """Features of each chunk, the logit scale as a leaf, and the random state from which each chunk started."""
    module = unwrap(model)
    # Running statistics of batch norms move in the second pass; moving them in both would count every batch twice.
    buffers = [buffer.clone() for buffer in module.buffers()]
    features, random_states = [], []
    for images in image_chunks:
        random_states.append(_random_state(images.device))
        with autocast():
            chunk_features, logit_scale = module(images)
        features.append(_at_least_float32(chunk_features))
    for buffer, saved in zip(module.buffers(), buffers, strict=True):
        buffer.copy_(saved)
    return features, logit_scale.detach().clone().requires_grad_(), random_states


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _no_sync(model: nn.Module) -> AbstractContextManager:
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def _random_state(device: torch.device) -> tuple[Tensor, ...]:
    """State of the CPU's generator and, where the images are on a GPU, of that GPU's."""
    on_gpu = (torch.cuda.get_rng_state(device),) if device.type == "cuda" else ()
    return torch.get_rng_state(), *on_gpu


def _set_random_state(state: tuple[Tensor, ...], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    for on_gpu in state[1:]:
        torch.cuda.set_rng_state(on_gpu, device)
