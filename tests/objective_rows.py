"""Rows of features and columns for objectives, without a model: leaves in float64, and slices as ranks have them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from oracles import oracle_loss
from torch import Tensor

from trainer.data.names import IMAGE_ID, LABEL, NUM_CAPTIONS, TEXT
from trainer.objectives.engine import blocked_loss
from trainer.objectives.objective import Objective, Rows

MOST_CAPTIONS = 3


@dataclass(frozen=True)
class Values:
    """Of one whole batch."""

    features: dict[str, Tensor]  # unit vectors, leaves
    given: dict[str, Tensor]
    scalars: dict[str, Tensor]  # leaves

    @property
    def leaves(self) -> dict[str, Tensor]:
        return {**self.features, **self.scalars}

    @property
    def together(self) -> dict[str, Tensor]:
        return {**self.features, **self.given}

    def rows(self, start: int = 0, stop: int | None = None) -> Rows:
        """Some rows as a rank's own, among all."""
        return Rows({name: x[start:stop] for name, x in self.together.items()}, self.together, start)


def make_values(
    objective: Objective,
    num_rows: int,
    embed_dim: int = 5,
    seed: int = 0,
    num_images: int = 6,
    dtype: torch.dtype = torch.float64,
) -> Values:
    """Random features; ids are below `num_images`, so that they repeat, and labels from -1 to 2."""
    generator = torch.Generator().manual_seed(seed)

    def numbers(low: int, high: int) -> Tensor:
        return torch.randint(low, high, (num_rows,), generator=generator)

    def unit(*shape: int) -> Tensor:
        return F.normalize(torch.randn(*shape, embed_dim, generator=generator, dtype=torch.float64), dim=-1).to(dtype)

    given = {name: {IMAGE_ID: numbers(0, num_images), LABEL: numbers(-1, 3)}[name] for name in objective.columns}
    features = {name: unit(num_rows) for name in objective.features}
    if objective.all_captions:
        given[NUM_CAPTIONS] = numbers(1, MOST_CAPTIONS + 1)
        features[TEXT] = unit(num_rows, MOST_CAPTIONS)
    scalars = objective.scalars({name: torch.tensor(x, dtype=dtype) for name, x in objective.parameters().items()})
    leaves = [{name: x.detach().requires_grad_() for name, x in side.items()} for side in (features, scalars)]
    return Values(leaves[0], given, leaves[1])


def found(objective: Objective, values: Values) -> Tensor:
    """The loss of the engine, in one process."""
    return blocked_loss(objective, values.rows(), values.scalars, {})


def right(objective: Objective, values: Values) -> Tensor:
    """The loss of the paper."""
    return oracle_loss(objective, values.together, values.scalars, values.given)


def gradients(loss: Tensor, values: Values) -> dict[str, Tensor]:
    """Of every leaf; zeros where the loss does not know it."""
    if not loss.requires_grad:
        return {name: torch.zeros_like(x) for name, x in values.leaves.items()}
    grads = torch.autograd.grad(loss, list(values.leaves.values()), retain_graph=True, allow_unused=True)
    return {
        name: torch.zeros_like(x) if grad is None else grad for (name, x), grad in zip(values.leaves.items(), grads)
    }


def assert_same(one: Tensor, other: Tensor, values: Values, **tolerances: Any) -> None:
    """Equal losses and gradients."""
    tolerances = tolerances or {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(one, other, **tolerances)
    torch.testing.assert_close(gradients(one, values), gradients(other, values), **tolerances)
