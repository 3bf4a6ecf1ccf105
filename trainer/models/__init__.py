"""Image encoders: a torchvision tower and a head, trained against frozen caption embeddings."""

from trainer.models.build import build_model, rebuild_model
from trainer.models.config import ModelConfig
from trainer.models.contrastive import ContrastiveModel, ImageEncoder

__all__ = ["ContrastiveModel", "ImageEncoder", "ModelConfig", "build_model", "rebuild_model"]
