"""A model from its settings, or from what a checkpoint says of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from trainer.augment import CLIP, NORMALIZATIONS, Normalization
from trainer.models.config import ModelConfig
from trainer.models.contrastive import ContrastiveModel, ImageEncoder
from trainer.models.tower import build_tower
from trainer.models.weights import load_weights, published_normalization


def build_model(config: ModelConfig, embed_dim: int) -> ContrastiveModel:
    """The model in float32 on the CPU, in training mode; compiling and synchronising batch norms is the trainer's part.

    Args:
        embed_dim: width of the caption embeddings.

    Raises:
        ConfigError: unknown tower or stage.
        WeightsError: the weights are missing or those of another tower.
    """
    normalization = _normalization(config)
    tower, tower_dim, last_layer = build_tower(config.tower)
    load_weights(tower, config.tower, last_layer, config.weights)
    hidden_dim = config.hidden_dim or tower_dim
    identity = {
        "tower": config.tower,
        "hidden_dim": hidden_dim,
        "embed_dim": embed_dim,
        "mean": list(normalization.mean),
        "std": list(normalization.std),
    }
    encoder = ImageEncoder(tower, tower_dim, hidden_dim, embed_dim, config.dropout, config.freeze)
    model = ContrastiveModel(encoder, normalization, config.init_temperature, config.max_logit_scale, identity)
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)
    return model.train()


def rebuild_model(identity: Mapping[str, Any]) -> ContrastiveModel:
    """The model that `ContrastiveModel.describe` spoke of, in eval mode, its weights still to be loaded."""
    config = ModelConfig(tower=identity["tower"], hidden_dim=identity["hidden_dim"])
    model = build_model(config, identity["embed_dim"])
    model.normalization = Normalization(tuple(identity["mean"]), tuple(identity["std"]))
    return model.eval()


def _normalization(config: ModelConfig) -> Normalization:
    if config.normalize != "auto":
        return NORMALIZATIONS[config.normalize]
    if config.weights == "none":
        return CLIP
    return published_normalization(config.tower, config.weights)
