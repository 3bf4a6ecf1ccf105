"""What of a batch the model takes, and what the objective is given beside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor

from trainer.data.batch import Batch
from trainer.data.names import IMAGE_FEATURES, NUM_CAPTIONS, TEXT, TOKENS
from trainer.objectives.objective import IMAGE, IMAGE2, Objective
from trainer.pictures.augment import Augment
from trainer.pictures.draw import Draw


def batch_columns(
    objective: Objective, columns: Mapping[str, str], tokens: str | None, image_features: str | None
) -> dict[str, str]:
    """The columns of a recipe's batches: name in a batch -> column of the shard sets.

    Args:
        columns: further ones that the recipe names; those that the objective needs are among them.
        tokens: of a text tower that is trained; None: captions' stored embeddings are read, where captions take part.
        image_features: stored outputs of a frozen tower.
    """
    text = ({TOKENS: tokens} if tokens else {TEXT: ""}) if objective.needs_text else {}
    return {**text, **columns, **({IMAGE_FEATURES: image_features} if image_features else {})}


def drawn_for(batch: Batch, views: int, augment: Augment) -> Batch:
    """The batch with what will be done to its pictures: before it goes to the device, which then waits for no draw."""
    if batch.images is None:
        return batch
    began, images = time.perf_counter(), batch.images
    drawn = tuple(augment.draw(images, batch.epoch, batch.draws, view) for view in range(views))
    return replace(batch, drawn=drawn, draw_s=time.perf_counter() - began)


def model_inputs(batch: Batch, rows: slice, views: int, render: Callable[[Tensor, Draw], Tensor]) -> dict[str, Tensor]:
    """Some rows of a training batch as the encoder takes them: pictures or stored tower outputs, and token ids."""
    names = (IMAGE, IMAGE2)[:views]
    if batch.images is None:
        inputs = {name: batch.column(IMAGE_FEATURES)[rows] for name in names}
    else:
        images = batch.images[rows]
        inputs = {name: render(images, drawn.part(rows)) for name, drawn in zip(names, batch.drawn, strict=True)}
    if TOKENS in batch.columns:
        inputs[TEXT] = batch.column(TOKENS)[rows]
    return inputs


def given_values(batch: Batch, objective: Objective) -> dict[str, Tensor]:
    """What the objective compares or relates by, and nobody trains: stored captions, ids, labels."""
    names = [*objective.columns, *([TEXT] if TEXT in batch.columns else [])]
    names += [NUM_CAPTIONS] if NUM_CAPTIONS in batch.columns else []
    return {name: batch.column(name) for name in names}


def evaluation_inputs(batch: Batch, normalize: Callable[[Tensor], Tensor]) -> Tensor:
    """Of a batch on its device: `(B, 3, S, S)` normalised pictures, or `(B, W)` stored tower outputs."""
    return batch.column(IMAGE_FEATURES) if batch.images is None else normalize(batch.images)
