"""A model of the trainer's shape that is small enough to compare to the last digit, and batches for any objective."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.data.names import IMAGE_ID, LABEL, NUM_CAPTIONS, TEXT
from trainer.objectives.infonce import InfoNCE
from trainer.objectives.objective import IMAGE, IMAGE2, Objective
from trainer.step.forward_backward import Chunk

IMAGE_SIZE, EMBED_DIM, NUM_TOKENS = 4, 6, 40
MOST_CAPTIONS = 3


class TinyModel(nn.Module):
    """`inputs -> (features (n, 6) by name, scalars by name)`, seeded; with batch norm and dropout if asked.

    Args:
        has_text: captions are token ids `(n, L)` or `(n, C, L)`, and their tower is trained.
    """

    def __init__(
        self,
        objective: Objective | None = None,
        dtype: torch.dtype = torch.float32,
        is_noisy: bool = False,
        has_text: bool = False,
    ) -> None:
        super().__init__()
        self.objective = objective or InfoNCE()
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            noise = [nn.BatchNorm1d(8), nn.Dropout(0.5)] if is_noisy else []
            self.tower = nn.Sequential(nn.Flatten(), nn.Linear(3 * IMAGE_SIZE**2, 8), *noise, nn.Tanh())
            self.head = nn.Linear(8, EMBED_DIM)
            self.text = nn.Sequential(nn.Embedding(NUM_TOKENS, 8), nn.Linear(8, EMBED_DIM)) if has_text else None
        learned = {name: nn.Parameter(torch.tensor(value)) for name, value in self.objective.parameters().items()}
        self.learned = nn.ParameterDict(learned)
        self.to(dtype)

    def forward(self, inputs: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        views = [name for name in (IMAGE, IMAGE2) if name in inputs]
        images = F.normalize(self.head(self.tower(torch.cat([inputs[name] for name in views]))), dim=1)
        features = dict(zip(views, images.chunk(len(views))))
        if self.text is not None:
            features[TEXT] = F.normalize(self.text(inputs[TEXT]).mean(-2), dim=-1)
        return features, self.objective.scalars(dict(self.learned.items()))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        groups = {"tower": list(self.tower.parameters()), "head": list(self.head.parameters())}
        if self.text is not None:
            groups["text"] = list(self.text.parameters())
        return {**groups, **{name: [p] for name, p in self.learned.items()}}

    def gradients(self) -> dict[str, Tensor]:
        """Each group's gradient as one vector; every parameter has one."""
        assert all(p.grad is not None for p in self.parameters())
        groups = self.parameter_groups().items()
        return {name: torch.cat([p.grad.flatten() for p in params if p.grad is not None]) for name, params in groups}


@dataclass(frozen=True)
class TinyBatch:
    """What the model takes and what the objective is given, of the same samples."""

    inputs: dict[str, Tensor]
    given: dict[str, Tensor]

    def __getitem__(self, rows: slice) -> TinyBatch:
        return TinyBatch({k: x[rows] for k, x in self.inputs.items()}, {k: x[rows] for k, x in self.given.items()})

    def __len__(self) -> int:
        return len(self.inputs[IMAGE])

    def chunks(self, count: int) -> list[Chunk]:
        """The inputs in equal pieces, each made when it is asked for."""
        size = len(self) // count
        return [lambda start=start: self[start : start + size].inputs for start in range(0, len(self), size)]


def make_batch(
    num_rows: int,
    objective: Objective | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 1,
    has_text: bool = False,
    distinct: bool = False,
) -> TinyBatch:
    """A seeded batch, equal on all ranks.

    Of three neighbours two show one image, and images come again half a batch later: within ranks and over them. Every
    fourth label is none. With `distinct`, ids do not repeat.
    """
    objective = objective or InfoNCE()
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    inputs = {name: normal(num_rows, 3, IMAGE_SIZE, IMAGE_SIZE) for name in (IMAGE, IMAGE2)[: objective.views]}
    given: dict[str, Tensor] = {}
    rows = torch.arange(num_rows)
    captions = (num_rows, MOST_CAPTIONS) if objective.all_captions else (num_rows,)
    if objective.all_captions:
        given[NUM_CAPTIONS] = 1 + rows % MOST_CAPTIONS
    if TEXT in objective.features and has_text:
        inputs[TEXT] = torch.randint(NUM_TOKENS, (*captions, 2), generator=generator)
    elif TEXT in objective.features:
        given[TEXT] = F.normalize(normal(*captions, EMBED_DIM), dim=-1)
        if objective.all_captions:
            given[TEXT][torch.arange(MOST_CAPTIONS) >= given[NUM_CAPTIONS][:, None]] = 0
    ids = rows if distinct else rows * 2 // 3 % max(2, num_rows // 3)
    relations = {IMAGE_ID: ids, LABEL: torch.where(rows % 4 == 3, -1, ids % 5)}
    return TinyBatch(inputs, given | {name: relations[name] for name in objective.columns})


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Length of the difference, relative to the expected length."""
    return float((actual.double() - expected.double()).norm() / expected.double().norm())
