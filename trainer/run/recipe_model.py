"""The model that a recipe asks for, beside the captions of its training set, with the weights that it begins with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from core.manifest import TextEncoderSpec
from core.shard_set import ShardSet
from trainer.config import TrainConfig
from trainer.models.build import build_encoder
from trainer.models.config import BareTower, ModelConfig
from trainer.models.encoder import Encoder
from trainer.models.trained import TrainedModel
from trainer.objectives import OBJECTIVES
from trainer.run.rng import rng_state, seed_generators, set_rng_state
from trainer.run.start_from import Source, Start, fill, read_source


def recipe_model(config: TrainConfig, train_set: ShardSet) -> tuple[TrainedModel, Start | None]:
    """The model, and what was taken over where `start_from` counts; collective.

    Raises:
        ConfigError: unknown tower or stage, a tower that cannot have this size, or weights that do not fit.
        WeightsError: weights are missing or those of another tower.
        CheckpointError: there is no checkpoint to start from, or it is damaged.
    """
    compares_stored = config.build_objective().needs_text and config.build_text() is None
    stored = train_set.text_encoder if compares_stored else None
    embed_dim = train_set.embed_dim if compares_stored else None
    return _model(config, read_source(config), stored, embed_dim, config.image_size or train_set.image.size)


def untrained_model(config: TrainConfig, stored: TextEncoderSpec | None, image_size: int) -> TrainedModel:
    """The model as the run began, before its first step: the recipe's own weights, all others drawn by its seed again.

    The same version of torch gives the same bits. Other random numbers go on as if nothing had been drawn.

    Args:
        stored: whose caption embeddings the head meets; None where there are none.
        image_size: pixels that the tower sees.

    Raises:
        ConfigError, WeightsError, CheckpointError: as `recipe_model`.
    """
    with _drawn_by(config.seed):
        embed_dim = stored.embed_dim if stored else None
        return _model(config, read_source(config, at_first_start=True), stored, embed_dim, image_size)[0]


def bare_encoder(tower: BareTower, image_size: int) -> Encoder:
    """A tower's own features: what a run of pictures alone with this seed, which starts from nothing, begins with.

    Raises:
        ConfigError, WeightsError: as `recipe_model`.
    """
    model = ModelConfig(tower=tower.tower, weights=tower.weights, normalize=tower.normalize)
    with _drawn_by(tower.seed):
        return build_encoder(model, OBJECTIVES["nt_xent"](), None, image_size)  # which leaves its head behind


@contextmanager
def _drawn_by(seed: int) -> Iterator[None]:
    """Random numbers by a seed; others go on afterwards as if nothing had been drawn."""
    before = rng_state()
    try:
        seed_generators(seed)
        yield
    finally:
        set_rng_state(before)


def _model(
    config: TrainConfig, source: Source | None, stored: TextEncoderSpec | None, stored_dim: int | None, size: int
) -> tuple[TrainedModel, Start | None]:
    """Every random number is drawn here, in an order that `untrained_model` repeats."""
    objective, text = config.build_objective(), config.build_text()
    tower = text.build(config.model.embed_dim) if text is not None else None
    embed_dim = tower.embed_dim if tower is not None else stored_dim
    normalization = source.normalization if source else None
    model = TrainedModel(build_encoder(config.model, objective, embed_dim, size, tower, normalization), objective)
    return model, fill(model, source, config, stored) if source else None
