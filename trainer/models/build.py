"""A model from its settings, or from what a checkpoint says of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from core import parts
from core.config import Choice
from core.errors import ConfigError
from trainer.augment import CLIP, NORMALIZATIONS, Normalization
from trainer.models.config import ModelConfig
from trainer.models.contrastive import ContrastiveModel, ImageEncoder
from trainer.models.towers import TOWERS
from trainer.models.towers.tower import Tower


def build_model(config: ModelConfig, embed_dim: int, image_size: int) -> ContrastiveModel:
    """The model in float32 on the CPU, in training mode; compiling and synchronising batch norms is the trainer's part.

    Args:
        embed_dim: width of the caption embeddings.
        image_size: of the pictures that the tower will see, pixels.

    Raises:
        ConfigError: unknown tower or stage, or a tower that cannot have this size.
        WeightsError: the weights are missing or those of another tower.
    """
    tower = build_tower(config.tower, config.weights, image_size)
    if config.sync_batchnorm:
        _expect_plain_batch_norms(tower)
    normalization = tower.normalization or CLIP if config.normalize == "auto" else NORMALIZATIONS[config.normalize]
    hidden_dim = config.hidden_dim or tower.width
    identity = {
        "tower": config.tower,
        "hidden_dim": hidden_dim,
        "embed_dim": embed_dim,
        "mean": list(normalization.mean),
        "std": list(normalization.std),
        "image_size": image_size,
    }
    encoder = ImageEncoder(tower.module, tower.width, hidden_dim, embed_dim, config.dropout, config.freeze)
    model = ContrastiveModel(encoder, normalization, config.init_temperature, config.max_logit_scale, identity)
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)
    return model.train()


def rebuild_model(identity: Mapping[str, Any]) -> ContrastiveModel:
    """The model that `ContrastiveModel.describe` spoke of, in eval mode, its weights still to be loaded."""
    config = ModelConfig(tower=identity["tower"], hidden_dim=identity["hidden_dim"])
    # Older identities have no image_size: towers of a fixed size had their own, which was 224 for each.
    model = build_model(config, identity["embed_dim"], identity.get("image_size", 224))
    model.normalization = Normalization(tuple(identity["mean"]), tuple(identity["std"]))
    return model.eval()


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
