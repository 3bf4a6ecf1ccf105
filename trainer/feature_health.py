"""Whether the shared space is in good shape: alignment, uniformity, and negatives that are none."""

from __future__ import annotations

import torch
from torch import Tensor


def alignment(image_features: Tensor, text_features: Tensor) -> Tensor:
    """Mean squared distance of matching pairs `(b, D)`, unit length: 0 (same) to 4 (opposite) (Wang & Isola 2020)."""
    return (image_features.float() - text_features.float()).square().sum(dim=1).mean()


def uniformity_potential(features: Tensor, t: float = 2.0) -> Tensor:
    """Mean Gaussian potential over pairs i < j of `(b, D)`, unit length; its log is the uniformity (Wang & Isola 2020).

    The potential, not its log, so that it can be averaged over ranks. Log of it: 0 (collapsed) down to about -4.
    """
    return torch.pdist(features.float()).square().mul(-t).exp().mean()


def false_negative_rate(text_features: Tensor, groups: Tensor, near: float) -> Tensor:
    """Share of the pairs treated as negatives whose captions nearly agree.

    Args:
        text_features: `(b, E)`, unit length.
        groups: `(b,)`; pairs of one group are positives or masked, so they are not counted.
        near: cosine similarity from which two captions say the same.
    """
    is_negative = groups[:, None] != groups[None, :]
    similar = text_features.float() @ text_features.float().T >= near
    return (similar & is_negative).sum() / is_negative.sum().clamp(min=1)
