"""The encoder: pictures, and captions where a text tower is trained, to unit vectors in one space."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.data.names import TEXT
from trainer.models.freeze import NOTHING, frozen_modules, num_frozen
from trainer.models.texts.tower import TextTower
from trainer.objectives.objective import IMAGE, IMAGE2
from trainer.pictures.normalization import Normalization


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
        self._may_train = [p.requires_grad for p in tower.parameters()]  # some towers fix tensors of their own
        self.freeze_until(frozen_until)

    def freeze_until(self, stage: str) -> None:
        """Freeze the stage `stage` of the tower and all before it ("tower", "nothing"), and let the rest train.

        What was frozen before and is no longer goes back to the mode of the whole: its batch statistics move again.

        Raises:
            ConfigError: the tower has no such stage.
        """
        count = num_frozen(self.tower, stage)
        for number, (parameter, may_train) in enumerate(zip(self.tower.parameters(), self._may_train, strict=True)):
            parameter.requires_grad_(may_train and number >= count)
        self.frozen_until = stage
        self._frozen = [] if stage == NOTHING else frozen_modules(self.tower)
        self._tower_trains = any(p.requires_grad for p in self.tower.parameters())
        self.train(self.training)

    def forward(self, inputs: Tensor) -> Tensor:
        """Args:
        inputs: pictures, or `(B, W)` what `tower_features` gave of them.
        """
        return F.normalize(self.head(self.before_head(inputs)).float(), dim=-1)

    def before_head(self, inputs: Tensor) -> Tensor:
        """The tower's pooled outputs `(B, tower_dim)` of the same inputs."""
        return inputs if inputs.ndim == 2 else self.tower_features(inputs)

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


class Encoder(nn.Module):
    """What is kept after training.

    Args:
        text_encoder: a trained text tower; None where captions' embeddings are given, or play no part.
        keeps_head: false where the image head serves training alone (SimCLR: Chen et al. 2020, section 4.2).
        identity: what `describe` says.
    """

    def __init__(
        self,
        image_encoder: ImageEncoder,
        text_encoder: TextTower | None,
        normalization: Normalization,
        keeps_head: bool,
        identity: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        self.normalization = normalization
        self.keeps_head = keeps_head
        self._identity = dict(identity)

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Training: features `(B, D)`, float32 of unit length, by the names of the inputs.

        Args:
            inputs: "image" and "image2": pictures `(B, 3, S, S)`, or tower outputs `(B, W)`; "text": token ids
                `(B, L)`, or `(B, C, L)` for all captions, which gives `(B, C, D)`.
        """
        views = [name for name in (IMAGE, IMAGE2) if name in inputs]
        # Both views in one pass: batch statistics are those of all pictures, as in SimCLR.
        together = torch.cat([inputs[name] for name in views]) if len(views) > 1 else inputs[views[0]]
        features = dict(zip(views, self.image_encoder(together).chunk(len(views))))
        if self.text_encoder is not None:
            tokens = inputs[TEXT]
            flat = self.text_encoder(tokens.flatten(0, -2))
            features[TEXT] = flat.unflatten(0, tokens.shape[:-1])
        return features

    def image_features(self, inputs: Tensor) -> Tensor:
        """Evaluation: what pictures are compared by, `(B, D)` float32 of unit length."""
        if self.keeps_head:
            features: Tensor = self.image_encoder(inputs)
            return features
        return F.normalize(self.image_encoder.before_head(inputs).float(), dim=-1)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The trainable parameters of "tower" (none when it is frozen), "head", and a text tower's parts."""
        groups = {
            "tower": [p for p in self.image_encoder.tower.parameters() if p.requires_grad],
            "head": [p for p in self.image_encoder.head.parameters() if p.requires_grad],
        }
        if self.text_encoder is not None:
            groups |= self.text_encoder.parameter_groups()
        return groups

    def describe(self) -> dict[str, Any]:
        """What the weights are, for a checkpoint: `rebuild_encoder` makes the same encoder from it."""
        return dict(self._identity)
