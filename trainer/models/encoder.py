"""The trained model: pictures to unit vectors beside frozen caption embeddings, and one learned temperature."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.augment import Normalization
from trainer.models.tower import freeze


class ImageEncoder(nn.Module):
    """Pictures `(B, 3, S, S)`, normalised, to `(B, D)` float32 of unit length: tower, then two linear layers."""

    def __init__(
        self, tower: nn.Module, tower_dim: int, hidden_dim: int, embed_dim: int, dropout: float, frozen_until: str
    ) -> None:
        super().__init__()
        self.tower_dim = tower_dim
        self.tower = tower
        self.head = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(tower_dim, hidden_dim),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_dim, embed_dim),
        )
        self._frozen = freeze(tower, frozen_until)
        self._tower_trains = any(p.requires_grad for p in tower.parameters())

    def forward(self, inputs: Tensor) -> Tensor:
        """Args:
        inputs: pictures, or `(B, W)` what `tower_features` gave of them.
        """
        features = inputs if inputs.ndim == 2 else self.tower_features(inputs)
        return F.normalize(self.head(features).float(), dim=-1)

    def tower_features(self, images: Tensor) -> Tensor:
        """The tower's pooled outputs `(B, tower_dim)`, before the head."""
        with contextlib.nullcontext() if self._tower_trains else torch.no_grad():
            return self.tower(images).flatten(1)

    def train(self, mode: bool = True) -> ImageEncoder:
        """As always, but what is frozen stays in eval mode: its batch statistics and dropout too."""
        super().train(mode)
        for name in self._frozen:  # by name: synchronised batch norms replace modules
            self.tower.get_submodule(name).eval()
        return self


class ContrastiveModel(nn.Module):
    """An image encoder and the temperature of the contrastive loss (CLIP: Radford 2021)."""

    def __init__(
        self,
        image_encoder: ImageEncoder,
        normalization: Normalization,
        init_temperature: float,
        max_logit_scale: float,
        identity: dict[str, Any],
    ) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / init_temperature)))  # a logarithm, as in CLIP
        self.normalization = normalization
        self.max_logit_scale = max_logit_scale
        self._identity = identity

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Image features `(B, D)` float32 of unit length, and the exponentiated logit_scale."""
        return self.image_encoder(inputs), self.logit_scale.float().exp()

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The trainable parameters of "tower" (none when it is frozen), "head" and "logit_scale"."""
        groups = {
            "tower": self.image_encoder.tower.parameters(),
            "head": self.image_encoder.head.parameters(),
            "logit_scale": [self.logit_scale],
        }
        return {name: [p for p in parameters if p.requires_grad] for name, parameters in groups.items()}

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Keep the scale between 1 and its maximum; call it after every optimizer step."""
        self.logit_scale.clamp_(0, math.log(self.max_logit_scale))

    def describe(self) -> dict[str, Any]:
        """What the weights are, for a checkpoint: `rebuild_model` makes the same model from it."""
        return dict(self._identity)
