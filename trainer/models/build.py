"""An encoder from its settings, or from what a checkpoint says of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from core import parts
from core.config import Choice
from core.errors import ConfigError
from trainer.models.config import ModelConfig
from trainer.models.encoder import Encoder, ImageEncoder
from trainer.models.freeze import expect_thawing
from trainer.models.texts.rebuild import rebuild_text
from trainer.models.texts.tower import TextTower
from trainer.models.thaw import in_order
from trainer.models.towers import TOWERS
from trainer.models.towers.tower import Tower
from trainer.objectives.objective import Objective
from trainer.pictures.normalization import CLIP, NORMALIZATIONS, Normalization


def build_encoder(
    config: ModelConfig,
    objective: Objective,
    embed_dim: int | None,
    image_size: int,
    text_encoder: TextTower | None = None,
    of_weights: Normalization | None = None,
) -> Encoder:
    """The encoder in float32 on the CPU, in training mode; compiling it and synchronising batch norms is not done here.

    Args:
        embed_dim: width of the captions' embeddings; None where captions play no part.
        image_size: of the pictures that the tower will see, pixels.
        text_encoder: a text tower that is trained with it.
        of_weights: how the pictures of weights that are filled in later were normalised.

    Raises:
        ConfigError: unknown tower or stage, stages that do not thaw, or a tower that cannot have this size.
        WeightsError: the weights are missing or those of another tower.
    """
    tower = build_tower(config.tower, config.weights, image_size)
    expect_thawing(tower.module, config.freeze, [until for _, until in in_order(config.thaw)])
    if config.sync_batchnorm:
        _expect_plain_batch_norms(tower)
    known = tower.normalization or of_weights or CLIP
    normalization = known if config.normalize == "auto" else NORMALIZATIONS[config.normalize]
    usual_hidden, usual_width = objective.head_dims or (tower.width, embed_dim)
    hidden_dim, width = config.hidden_dim or usual_hidden, embed_dim or config.embed_dim or usual_width
    assert width, "an objective without captions says how wide its head is"
    identity = {
        "tower": config.tower,
        "hidden_dim": hidden_dim,
        "embed_dim": width,
        "mean": list(normalization.mean),
        "std": list(normalization.std),
        "image_size": image_size,
        "keeps_head": objective.keeps_head,
        "text": text_encoder.describe() if text_encoder is not None else None,
    }
    image_encoder = ImageEncoder(tower.module, tower.width, hidden_dim, width, config.dropout, config.freeze)
    encoder = Encoder(image_encoder, text_encoder, normalization, objective.keeps_head, identity)
    if config.channels_last:
        encoder = encoder.to(memory_format=torch.channels_last)
    return encoder.train()


def rebuild_encoder(identity: Mapping[str, Any]) -> Encoder:
    """The encoder that `Encoder.describe` spoke of, in eval mode, its weights still to be loaded."""
    # Older identities have no image_size: towers of a fixed size had their own, which was 224 for each.
    identity = {"image_size": 224, **identity}
    tower = build_tower(identity["tower"], "none", identity["image_size"])
    dims = tower.width, identity["hidden_dim"], identity["embed_dim"]
    image_encoder = ImageEncoder(tower.module, *dims, dropout=0.0, frozen_until="nothing")
    normalization = Normalization(tuple(identity["mean"]), tuple(identity["std"]))
    text_encoder = rebuild_text(identity["text"]) if identity["text"] else None
    encoder = Encoder(image_encoder, text_encoder, normalization, identity["keeps_head"], identity)
    return encoder.to(memory_format=torch.channels_last).eval()


def build_tower(tower: str, weights: str, image_size: int) -> Tower:
    """The tower that a recipe names: `family:name`, or the name of one of torchvision's."""
    family, name = tower.split(":", 1) if ":" in tower else ("torchvision", tower)
    given: dict[str, Any] = {"name": name, "weights": weights, "image_size": image_size}
    built: Tower = parts.build(TOWERS, Choice(family), "the family of model.tower", **given)
    return built


def _expect_plain_batch_norms(tower: Tower) -> None:
    """Synchronising replaces whole modules: an activation inside of one (timm's `BatchNormAct2d`) would be lost."""
    for name, module in tower.module.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and list(module.children()):
            raise ConfigError(
                f"model.sync_batchnorm cannot be had with {tower.name}: its batch norms (such as {name}) hold the "
                "activation too, which would be lost. Set model.sync_batchnorm=false."
            )
