"""Encoders for tests of towers: of pictures beside captions' stored embeddings."""

from trainer.models.build import build_encoder
from trainer.models.config import ModelConfig
from trainer.models.encoder import Encoder
from trainer.objectives.infonce import InfoNCE


def encoder_of(config: ModelConfig, embed_dim: int, image_size: int) -> Encoder:
    """As a run with InfoNCE builds it."""
    return build_encoder(config, InfoNCE(), embed_dim, image_size)
