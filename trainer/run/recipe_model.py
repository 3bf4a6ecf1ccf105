"""The model that a recipe asks for, beside the captions of its training set, with the weights that it begins with."""

from core.shard_set import ShardSet
from trainer.config import TrainConfig
from trainer.models.build import build_encoder
from trainer.models.trained import TrainedModel
from trainer.run.start_from import Start, fill, read_source


def recipe_model(config: TrainConfig, train_set: ShardSet) -> tuple[TrainedModel, Start | None]:
    """The model, and what was taken over where `start_from` counts; collective.

    Raises:
        ConfigError: unknown tower or stage, a tower that cannot have this size, or weights that do not fit.
        WeightsError: weights are missing or those of another tower.
        CheckpointError: there is no checkpoint to start from, or it is damaged.
    """
    objective, text = config.build_objective(), config.build_text()
    source = read_source(config)
    tower = text.build(config.model.embed_dim) if text is not None else None
    if tower is not None:
        embed_dim: int | None = tower.embed_dim
    else:
        embed_dim = train_set.embed_dim if objective.needs_text else None
    stored = train_set.text_encoder if objective.needs_text and tower is None else None
    size = config.image_size or train_set.image.size
    normalization = source.normalization if source else None
    model = TrainedModel(build_encoder(config.model, objective, embed_dim, size, tower, normalization), objective)
    return model, fill(model, source, config, stored) if source else None
