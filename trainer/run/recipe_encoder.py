"""The encoder that a recipe asks for, beside the captions of its training set."""

from core.shard_set import ShardSet
from trainer.config import TrainConfig
from trainer.models.build import build_encoder
from trainer.models.encoder import Encoder
from trainer.pictures.normalization import Normalization


def recipe_encoder(config: TrainConfig, train_set: ShardSet, normalization: Normalization | None = None) -> Encoder:
    """As `build_encoder` gives it; a text tower that is trained is part of it.

    Args:
        normalization: of weights that are filled in later.

    Raises:
        ConfigError: unknown tower or stage, or a tower that cannot have this size.
        WeightsError: weights are missing or those of another tower.
    """
    objective, text = config.build_objective(), config.build_text()
    size = config.image_size or train_set.image.size
    if text is not None:
        tower = text.build(config.model.embed_dim)
        return build_encoder(config.model, objective, tower.embed_dim, size, tower, normalization)
    embed_dim = train_set.embed_dim if objective.needs_text else None
    return build_encoder(config.model, objective, embed_dim, size, None, normalization)
