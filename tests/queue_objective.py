"""A test's own objective with state: captions against this batch's pictures and a queue of those before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.data.names import TEXT
from trainer.objectives import OBJECTIVES
from trainer.objectives.closed_form import softmax_loss
from trainer.objectives.objective import IMAGE, Block, Objective, Rows, Tensors

QUEUE = "queue"


@dataclass(frozen=True)
class Queued(Objective):
    """The newest `length` pictures of all ranks, as they were when they were seen, are negatives of every caption."""

    length: int = 12  # more than a batch, and no multiple of it

    features = (IMAGE, TEXT)

    def terms(self, block: Block) -> Iterator[Tensor]:
        columns = torch.cat([block.columns[IMAGE], block.state[QUEUE].to(block.columns[IMAGE].dtype)])
        yield softmax_loss(block.rows[TEXT], columns, block.scalars["scale"], own=block.offset)

    def parameters(self) -> dict[str, float]:
        return {"logit_scale": 2.0}

    def scalars(self, parameters: Tensors) -> dict[str, Tensor]:
        return {"scale": parameters["logit_scale"].exp()}

    def initial_state(self, embed_dim: int) -> dict[str, Tensor]:
        return {QUEUE: torch.zeros(self.length, embed_dim)}

    def next_state(self, rows: Rows, state: Tensors) -> dict[str, Tensor]:
        queue = state[QUEUE]
        return {QUEUE: torch.cat([rows.everywhere[IMAGE].to(queue.dtype), queue])[: self.length]}


def register_queue() -> None:
    """Plant: recipes may say `objective: queued`."""
    OBJECTIVES["queued"] = Queued
