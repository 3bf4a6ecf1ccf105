"""Whether the shared space is in good shape: alignment and uniformity."""

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
