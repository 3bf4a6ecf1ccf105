"""The losses that `benchmarks.loss` compares, each as one step: forward, backward, gradients left on the features.

Needs .peers on the path; see `benchmarks.measure.in_own_process`.
"""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.loss_before import info_nce
from benchmarks.measure import take_turns
from benchmarks.memory import peak_above
from core.distributed import barrier, rank, world_size
from trainer.data.names import IMAGE_ID, TEXT
from trainer.objectives.infonce import InfoNCE
from trainer.objectives.objective import IMAGE
from trainer.step.forward_backward import forward_backward

EMBED_DIM = 512


@dataclass(frozen=True)
class Features:
    """This process's rows; what is learned are leaves."""

    image: Tensor  # (b, D), unit length
    text: Tensor  # (b, D), unit length
    log_scale: Tensor  # scalar
    groups: Tensor  # (b,)

    def leaves(self) -> dict[str, Tensor]:
        return {"image": self.image, "text": self.text, "logit_scale": self.log_scale}

    def clear(self) -> None:
        for leaf in self.leaves().values():
            leaf.grad = None


Step = Callable[[Features], Tensor]  # returns the loss, without gradient


def make_features(num_pairs: int, device: str) -> Features:
    """A seeded batch of `num_pairs` over all processes; captions lie near their images, as in training."""
    generator = torch.Generator().manual_seed(0)
    image = F.normalize(torch.randn(num_pairs, EMBED_DIM, generator=generator), dim=1)
    text = F.normalize(image + 0.2 * torch.randn(num_pairs, EMBED_DIM, generator=generator), dim=1)
    own = slice(rank() * num_pairs // world_size(), (rank() + 1) * num_pairs // world_size())
    leaves = [x.clone().to(device).requires_grad_() for x in (image[own], text[own], torch.tensor(math.log(1 / 0.07)))]
    return Features(*leaves, torch.arange(num_pairs, device=device)[own])


def before_and_now() -> dict[str, Step]:
    """Our InfoNCE of today and of yesterday, with stored and with trained texts; in one process."""
    return {
        "texts stored": _frozen_texts(_ours),
        "texts stored, before": _frozen_texts(_before),
        "texts trained": _ours,
        "texts trained, before": _before,
    }


def contenders(device: str) -> dict[str, Step]:
    """By name, ours first."""
    from open_clip.loss import ClipLoss, SigLipLoss

    place = {"rank": rank(), "world_size": world_size()}
    clip_loss = ClipLoss(local_loss=True, gather_with_grad=True, **place)
    siglip_loss = SigLipLoss(**place)
    bias = torch.tensor(-10.0, device=device)
    found: dict[str, Step] = {
        "shardclip": _frozen_texts(_ours),
        "shardclip, texts trained": _ours,
        "open_clip ClipLoss": _step(clip_loss),
        "open_clip ClipLoss, texts frozen": _frozen_texts(_step(clip_loss)),
        "open_clip SigLipLoss": _step(lambda image, text, scale: siglip_loss(image, text, scale, bias)),
    }
    if world_size() == 1:
        found["plain InfoNCE"] = _step(_plain)
    if device == "cuda" and importlib.util.find_spec("inf_cl"):
        from inf_cl import cal_flash_loss

        def both_ways(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
            ways = ((image, text), (text, image))
            return sum(cal_flash_loss(queries, keys, scale=scale).mean() for queries, keys in ways) / 2

        found["Inf-CLIP"] = _step(both_ways)
    return found


def times_of(found: Mapping[str, Step], features: Features, rounds: int) -> dict[str, list[float]]:
    """Seconds of a step of each contender, in turn."""
    repeats = max(1, 2048 // (len(features.image) * world_size()))

    def once(step: Step) -> float:
        barrier()
        _finish(features)
        start = time.perf_counter()
        for _ in range(repeats):
            features.clear()
            step(features)
        _finish(features)
        return (time.perf_counter() - start) / repeats

    return take_turns({name: lambda step=step: once(step) for name, step in found.items()}, rounds)


def memory_of(step: Step, features: Features) -> dict[str, int]:
    """Most bytes above the features (gradients of the features included), and bytes kept for the backward pass."""
    saved: dict[int, int] = {}

    def note(x: Tensor) -> Tensor:
        saved[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()  # views share what they are views of
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        _, peak_bytes = peak_above(lambda: step(features), features.image.is_cuda)
    inputs = {x.untyped_storage().data_ptr() for x in features.leaves().values()}
    return {"peak_bytes": peak_bytes, "saved_bytes": sum(n for where, n in saved.items() if where not in inputs)}


def agreement(found: Mapping[str, Step], features: Features) -> dict[str, str]:
    """How far the InfoNCE contenders are from ours with trained texts: loss and gradients, relative, largest."""
    results = {}
    for name, step in found.items():
        features.clear()
        loss = step(features)
        results[name] = {"loss": loss, **{part: leaf.grad for part, leaf in features.leaves().items()}}
    ours = results["shardclip, texts trained"]
    return {
        f"{name}, difference to ours": ", ".join(
            f"{part} {_relative(value, ours[part]):.1e}" for part, value in result.items() if value is not None
        )
        for name, result in results.items()
        if name != "shardclip, texts trained" and "SigLip" not in name
    }


def _relative(value: Tensor, reference: Tensor) -> float:
    return float((value - reference).norm() / reference.norm())


class _Given(nn.Module):
    """Stands where the encoder stands: its features are there already."""

    def __init__(self, features: Features) -> None:
        super().__init__()
        self._features = features

    def forward(self, inputs: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        trained = {IMAGE: self._features.image, TEXT: self._features.text}
        features = {name: x for name, x in trained.items() if x.requires_grad}
        return features, {"scale": self._features.log_scale.exp()}


def _ours(features: Features) -> Tensor:
    given = {IMAGE_ID: features.groups} | ({} if features.text.requires_grad else {TEXT: features.text})
    return forward_backward(_Given(features), [dict], given, InfoNCE(), {}).loss


def _before(features: Features) -> Tensor:
    sides = (features.image, features.text)
    loss = info_nce(*sides, *sides, features.log_scale.exp(), features.groups, features.groups, 0)
    loss.backward()
    return loss.detach()


def _step(loss_fn: Callable[..., Any]) -> Step:
    def step(features: Features) -> Tensor:
        loss = loss_fn(features.image, features.text, features.log_scale.exp())
        loss.backward()
        return loss.detach()

    return step


def _frozen_texts(step: Step) -> Step:
    return lambda features: step(replace(features, text=features.text.detach()))


def _plain(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    logits = scale * image @ text.T
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def _finish(features: Features) -> None:
    if features.image.is_cuda:
        torch.cuda.synchronize()
