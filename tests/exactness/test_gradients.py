"""Gradients of the real step in 1, 2 and 4 processes against one big batch in one process, parameter by parameter.

Every combination of type, chunks, blocks, positives, smoothing and duplicates; the short form has one batch, the long
one several larger ones. The worst errors are printed (`pytest -s`) and stand in docs/exactness.md.
"""

from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import gloo
import pytest
import torch
from tiny_model import TinyModel, make_batch, relative_error
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from trainer.losses.infonce import InfoNCE

from core.distributed import rank, world_size
from trainer.step.forward_backward import forward_backward

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-5}
CHUNKS, BLOCKS = (1, 2, 3), (0, 5)


@dataclass(frozen=True)
class Target:
    """What counts as a right answer, and whether the batch has images with several captions."""

    positives: Literal["mask", "multi"] = "mask"
    label_smoothing: float = 0.0
    max_caption_similarity: float | None = None
    has_duplicates: bool = False

    def groups(self, num_rows: int) -> Tensor:
        """The second caption of an image is half a batch away, so on another rank."""
        return torch.arange(num_rows) % (num_rows // 2 if self.has_duplicates else num_rows)


TARGETS = (
    Target(),
    Target(label_smoothing=0.1),
    Target("mask", 0.0, None, True),
    Target("mask", 0.1, None, True),
    Target("multi", 0.0, None, True),
    Target("multi", 0.1, None, True),
    Target("mask", 0.0, 0.5),
    Target("multi", 0.1, 0.5, True),
)
CASES = tuple(product(TOLERANCES, CHUNKS, BLOCKS, TARGETS))


def dense_loss(image_features: Tensor, text_features: Tensor, logit_scale: Tensor, target: Target) -> Tensor:
    """The definition on one whole batch: the full matrix, its mask and its target shares, plain autograd."""
    logits = logit_scale * image_features @ text_features.T
    groups = target.groups(len(logits))
    own = torch.eye(len(logits), dtype=torch.bool)
    same_image = groups[:, None] == groups
    positive = same_image if target.positives == "multi" else own
    alike = same_image
    if target.max_caption_similarity is not None:
        alike = alike | (text_features @ text_features.T > target.max_caption_similarity)
    valid = positive | ~alike
    shares, evenly = (chosen.double() / chosen.sum(1, keepdim=True) for chosen in (positive, valid))
    shares = (1 - target.label_smoothing) * shares + target.label_smoothing * evenly
    losses = []
    for direction in (logits, logits.T):  # mask and shares are symmetric
        log_probability = direction.masked_fill(~valid, -torch.inf).log_softmax(1).masked_fill(~valid, 0)
        losses.append(-(shares * log_probability).sum(1).mean())
    return (losses[0] + losses[1]) / 2


def one_big_batch(target: Target, num_rows: int, seed: int) -> dict[str, Tensor]:
    """Loss and gradient of each parameter, by plain autograd in float64."""
    model = TinyModel(torch.float64)
    images, text_features = make_batch(num_rows, torch.float64, seed)
    image_features, logit_scale = model(images)
    loss = dense_loss(image_features, text_features, logit_scale, target)
    loss.backward()
    return {"loss": loss.detach(), **gradients(model)}


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    """Of every parameter by its name; none may be missing."""
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(grad is not None for grad in found.values()), found
    return {name: grad for name, grad in found.items() if grad is not None}


def gradients_of_a_rank(num_rows: int, seed: int) -> list[dict[str, Tensor]]:
    """Loss and gradients of every case, as this rank sees them after DDP has averaged."""
    num_local = num_rows // world_size()
    rows = slice(rank() * num_local, (rank() + 1) * num_local)
    seen = []
    for dtype, num_chunks, block_size, target in CASES:
        images, text_features = (x[rows] for x in make_batch(num_rows, dtype, seed))
        model = DistributedDataParallel(TinyModel(dtype))
        loss_fn = InfoNCE(target.label_smoothing, block_size, target.positives, target.max_caption_similarity)
        groups = target.groups(num_rows)[rows]
        result = forward_backward(model, images.tensor_split(num_chunks), text_features, groups, loss_fn)
        seen.append({"loss": result.loss, **gradients(model.module)})
    return seen


def worst_errors(ranks: list[list[dict[str, Tensor]]], num_rows: int, seed: int) -> dict[torch.dtype, Any]:
    """For each type the largest relative error of any case, rank and parameter, with its place."""
    expected = {target: one_big_batch(target, num_rows, seed) for target in TARGETS}
    worst: dict[torch.dtype, Any] = dict.fromkeys(TOLERANCES, (0.0, None))
    for number, case in enumerate(CASES):
        reference, mean_loss = expected[case[-1]], torch.stack([seen[number]["loss"] for seen in ranks]).double().mean()
        for seen in ranks:
            found = {**seen[number], "loss": mean_loss}
            assert found.keys() == reference.keys()
            errors = [(relative_error(found[name], reference[name]), (*case, name)) for name in reference]
            worst[case[0]] = max([worst[case[0]], *errors], key=lambda error: error[0])
    return worst


SHORT = [(24, 1)]
FULL = [pytest.param(96, seed, marks=pytest.mark.slow) for seed in range(2, 8)]


@pytest.mark.parametrize("num_processes", [1, 2, 4])
@pytest.mark.parametrize(("num_rows", "seed"), [*SHORT, *FULL])
def test_gradients_are_those_of_one_big_batch(num_processes: int, num_rows: int, seed: int) -> None:
    ranks = gloo.run(num_processes, gradients_of_a_rank, num_rows, seed)
    for dtype, (error, place) in worst_errors(ranks, num_rows, seed).items():
        print(f"{num_processes} processes, {num_rows} rows, {dtype}: worst relative error {error:.1e} at {place}")
        assert error <= TOLERANCES[dtype], place


def test_the_targets_differ_so_that_no_case_hides_behind_another() -> None:
    references = [one_big_batch(target, 24, 1) for target in TARGETS]
    for one, other in ((a, b) for a in range(len(references)) for b in range(a)):
        error = relative_error(references[one]["head.weight"], references[other]["head.weight"])
        assert error > 1e-3, (TARGETS[one], TARGETS[other])
