"""An encoder from its settings, or from what a checkpoint says of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from trainer.models.config import ModelConfig
from trainer.models.encoder import Encoder, ImageEncoder
from trainer.models.texts.rebuild import rebuild_text
from trainer.models.texts.tower import TextTower
from trainer.models.tower import build_tower
from trainer.models.weights import load_weights, published_normalization
from trainer.objectives.objective import Objective
from trainer.pictures.normalization import CLIP, NORMALIZATIONS, Normalization


def build_encoder(
    config: ModelConfig,
    objective: Objective,
    embed_dim: int | None,
    text_encoder: TextTower | None = None,
    normalization: Normalization | None = None,
) -> Encoder:
    """The encoder in float32 on the CPU, in training mode; compiling it and synchronising batch norms is not done here.

    Args:
        embed_dim: width of the captions' embeddings; None where captions play no part.
        text_encoder: a text tower that is trained with it.
        normalization: of weights that are filled in later; it counts where the settings say `auto`.

    Raises:
        ConfigError: unknown tower or stage.
        WeightsError: the weights are missing or those of another tower.
    """
    chosen = _normalization(config, normalization)
    tower, tower_dim, last_layer = build_tower(config.tower)
    load_weights(tower, config.tower, last_layer, config.weights)
    usual_hidden, usual_width = objective.head_dims or (tower_dim, embed_dim)
    hidden_dim, width = config.hidden_dim or usual_hidden, embed_dim or config.embed_dim or usual_width
    assert width, "an objective without captions says how wide its head is"
    identity = {
        "tower": config.tower,
        "hidden_dim": hidden_dim,
        "embed_dim": width,
        "mean": list(chosen.mean),
        "std": list(chosen.std),
        "keeps_head": objective.keeps_head,
        "text": text_encoder.describe() if text_encoder is not None else None,
    }
    image_encoder = ImageEncoder(tower, tower_dim, hidden_dim, width, config.dropout, config.freeze)
    encoder = Encoder(image_encoder, text_encoder, chosen, objective.keeps_head, identity)
    if config.channels_last:
        encoder = encoder.to(memory_format=torch.channels_last)
    return encoder.train()


def rebuild_encoder(identity: Mapping[str, Any]) -> Encoder:
    """The encoder that `Encoder.describe` spoke of, in eval mode, its weights still to be loaded."""
    config = ModelConfig(
        tower=identity["tower"], hidden_dim=identity["hidden_dim"], embed_dim=identity["embed_dim"], channels_last=False
    )
    normalization = Normalization(tuple(identity["mean"]), tuple(identity["std"]))
    tower, tower_dim, _ = build_tower(config.tower)
    image_encoder = ImageEncoder(tower, tower_dim, config.hidden_dim, config.embed_dim, 0.0, "nothing")
    text_encoder = rebuild_text(identity["text"]) if identity["text"] else None
    return Encoder(image_encoder, text_encoder, normalization, identity["keeps_head"], identity).eval()


def _normalization(config: ModelConfig, of_weights: Normalization | None) -> Normalization:
    if config.normalize != "auto":
        return NORMALIZATIONS[config.normalize]
    if config.weights == "none":
        return of_weights or CLIP
    return published_normalization(config.tower, config.weights)
