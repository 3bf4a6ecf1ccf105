"""What the model takes of a batch: pictures, or what its frozen tower made of them earlier."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from trainer.data.batch import IMAGE_FEATURES, TEXT, Batch


def batch_columns(columns: dict[str, str], image_features: str | None) -> dict[str, str]:
    """The columns of a recipe's batches: the captions' embeddings, those it names, and stored tower outputs."""
    stored = {IMAGE_FEATURES: image_features} if image_features else {}
    return {TEXT: "", **columns, **stored}


def evaluation_inputs(batch: Batch, normalize: Callable[[Tensor], Tensor], device: torch.device) -> Tensor:
    """`(B, 3, S, S)` normalised pictures, or `(B, W)` stored tower outputs, on the device."""
    if batch.images is None:
        return batch.column(IMAGE_FEATURES).to(device, non_blocking=True)
    return normalize(batch.images.to(device, non_blocking=True))
