"""Steps and objectives that are wrong in other ways than their gather: each function plants one in this process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import trainer.step.forward_backward
import trainer.step.proof
from core.distributed import all_reduce_sum, world_size
from trainer.data.names import IMAGE_ID, LABEL
from trainer.objectives import OBJECTIVES
from trainer.objectives.closed_form import softmax_loss
from trainer.objectives.infonce import InfoNCE
from trainer.objectives.objective import IMAGE, IMAGE2, Block, Objective, Rows, Tensors
from trainer.objectives.supcon import SupCon

QUEUE_ROWS = 16


def wrong_ids() -> None:
    """The step hands on each row's number in place of its id, so that nothing repeats."""
    real = trainer.step.forward_backward._gathered_loss

    def with_wrong_ids(features: Any, scalars: Any, given: Any, *rest: Any) -> Any:
        distinct = torch.arange(len(given[IMAGE_ID]), device=given[IMAGE_ID].device)
        return real(features, scalars, {**given, IMAGE_ID: distinct}, *rest)

    trainer.step.forward_backward._gathered_loss = with_wrong_ids


def ignored_ids() -> None:
    """The objective asks for ids and takes every row for another image."""
    blind(InfoNCE, IMAGE_ID)


def ignored_labels() -> None:
    """The objective asks for labels and takes every row for a class of its own."""
    blind(SupCon, LABEL)


def blind(objective: type[Objective], name: str) -> None:
    """Let an objective take every row's value of a column for another one."""
    real = objective.terms
    objective.terms = lambda self, block: real(self, _with_distinct(block, name))  # type: ignore[method-assign]


def dropped_scalar() -> None:
    """What is learned beside the model gets no gradient from the loss."""
    real = trainer.step.forward_backward._gathered_loss

    def without(features: Any, scalars: Any, *rest: Any) -> Any:
        return real(features, {name: x.detach() + 0 * x for name, x in scalars.items()}, *rest)

    trainer.step.forward_backward._gathered_loss = without


def divided_by_the_chunks() -> None:
    """As where an accelerator is told of gradient accumulation."""
    real = trainer.step.proof.forward_backward

    def divided(model: Any, chunks: Any, *rest: Any) -> Any:
        return real(model, chunks, *rest, backward=lambda loss: (loss / len(chunks)).backward())

    trainer.step.proof.forward_backward = divided  # type: ignore[assignment]


@dataclass(frozen=True)
class Queue(Objective):
    """MoCo's shape, for tests: two views find each other among all of them and the last second views of every rank."""

    features = (IMAGE, IMAGE2)
    columns = (IMAGE_ID,)
    views = 2
    head_dims = (16, 8)

    def terms(self, block: Block) -> Iterator[Tensor]:
        columns = torch.cat([block.columns[IMAGE2], block.state["queue"].to(block.rows[IMAGE].dtype)])
        ids = torch.cat([block.columns[IMAGE_ID], block.state["ids"]])
        alike = block.rows[IMAGE_ID][:, None] == ids
        alike.diagonal(block.offset).fill_(False)
        yield softmax_loss(block.rows[IMAGE], columns, 5.0, own=block.offset, left_out=alike)

    def initial_state(self, embed_dim: int) -> dict[str, Tensor]:
        return {"queue": torch.zeros(QUEUE_ROWS, embed_dim), "ids": torch.full((QUEUE_ROWS,), -1)}

    def next_state(self, rows: Rows, state: Tensors) -> dict[str, Tensor]:
        newest = {"queue": rows.everywhere[IMAGE2].detach(), "ids": rows.everywhere[IMAGE_ID]}
        return {name: torch.cat([x.to(state[name]), state[name]])[:QUEUE_ROWS] for name, x in newest.items()}


class AveragedQueue(Queue):
    """Its queue is averaged over processes, as DDP's buffers or an all-reduce would leave it."""

    def next_state(self, rows: Rows, state: Tensors) -> dict[str, Tensor]:
        own = Rows(rows.own, rows.own, 0)
        next_state = super().next_state(own, state)
        return {**next_state, "queue": all_reduce_sum(next_state["queue"]) / world_size()}


def averaged_queue() -> None:
    OBJECTIVES["queue"] = AveragedQueue


def right_queue() -> None:
    OBJECTIVES["queue"] = Queue


def _with_distinct(block: Block, name: str) -> Block:
    columns = {**block.columns, name: torch.arange(len(block.columns[name]), device=block.columns[name].device)}
    rows = {**block.rows, name: columns[name][block.offset : block.offset + len(block.rows[name])]}
    return Block(rows, columns, block.offset, block.scalars, block.state)
