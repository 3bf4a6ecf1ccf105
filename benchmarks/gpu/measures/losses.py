"""Every objective over random features: time and memory of forward and backward, as the training step calls it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from benchmarks.gpu.measure import Context, Figures

_WIDTH, _CLASSES = 512, 1000
_FIRST_PAIRS = 64  # to load code and open libraries
_OF_MANY = ("infonce", "siglip")


def objectives(context: Context) -> Figures:
    """Every objective that is registered."""
    from trainer.objectives import OBJECTIVES

    return _summary([_measured(context, name, context.size.pairs) for name in OBJECTIVES])


def many_pairs(context: Context) -> Figures:
    """The objectives that large batches are for, at twice the pairs from size to size."""
    rows = [_measured(context, name, pairs) for name in _OF_MANY for pairs in context.size.many_pairs]
    growth = [
        after["peak_mib"] / before["peak_mib"] for before, after in pairwise(rows) if after["name"] == before["name"]
    ]
    return {**_summary(rows), "most_memory_growth": max(growth)}


def _summary(rows: Sequence[Figures]) -> Figures:
    return {
        "slowest_s": max(row["seconds"] for row in rows),
        "most_mib": max(row["peak_mib"] for row in rows),
        "all_finite": all(row["is_finite"] for row in rows),
        "objectives": list(rows),
    }


def _measured(context: Context, name: str, pairs: int) -> Figures:
    from benchmarks.memory import peak_above

    on_gpu = context.device == "cuda"
    _step(context.device, name, _FIRST_PAIRS)
    step = _prepared(context.device, name, pairs)
    _, peak = peak_above(step, on_gpu)
    began = time.perf_counter()
    loss = step()
    if on_gpu:
        _synchronize()
    seconds = time.perf_counter() - began
    return {
        "name": name, "pairs": pairs, "seconds": seconds, "peak_mib": peak / 2**20,
        "is_finite": bool(loss.isfinite()),
    }  # fmt: skip


def _step(device: str, name: str, pairs: int) -> Any:
    return _prepared(device, name, pairs)()


def _prepared(device: str, name: str, pairs: int) -> Any:
    """A function that runs one step over the same random features, and returns the loss."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    from core.config import Choice
    from core.parts import build
    from trainer.data.names import IMAGE_ID, LABEL, TEXT
    from trainer.objectives import OBJECTIVES
    from trainer.step.forward_backward import forward_backward

    objective = build(OBJECTIVES, Choice(name), "objective")
    generator = torch.Generator(device).manual_seed(0)

    def features() -> torch.Tensor:
        return F.normalize(torch.randn(pairs, _WIDTH, generator=generator, device=device), dim=1)

    class Towers(nn.Module):
        """What a model gives: features that are trained, and the objective's scalars."""

        def __init__(self) -> None:
            super().__init__()
            self.features = nn.ParameterDict({view: features() for view in objective.features if view != TEXT})
            start = {key: nn.Parameter(torch.tensor(value, device=device)) for key, value in _learned(objective)}
            self.learned = nn.ParameterDict(start)

        def forward(self, inputs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
            return dict(self.features), objective.scalars(dict(self.learned))

    of_samples = {
        IMAGE_ID: torch.arange(pairs, device=device),
        LABEL: torch.randint(_CLASSES, (pairs,), generator=generator, device=device),
    }
    given = {column: of_samples[column] for column in objective.columns}
    if objective.needs_text:
        given[TEXT] = features().half()  # as they are stored
    model = Towers()
    state = {key: value.to(device) for key, value in objective.initial_state(_WIDTH).items()}

    def step() -> torch.Tensor:
        model.zero_grad(set_to_none=True)
        return forward_backward(model, [dict], given, objective, state).loss

    return step


def _learned(objective: Any) -> Iterator[tuple[str, float]]:
    yield from objective.parameters().items()


def _synchronize() -> None:
    import torch

    torch.cuda.synchronize()
