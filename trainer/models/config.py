"""The settings of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from core.errors import ConfigError


@dataclass(frozen=True)
class ModelConfig:
    """A torchvision classifier without its last layer, and two linear layers to the width of the caption embeddings."""

    tower: str = "resnet50"  # any torchvision classifier by name
    weights: str = "none"  # "none", a torchvision name such as "IMAGENET1K_V2", or the path of a state dict
    hidden_dim: int = 0  # between the head's two layers; 0: as wide as the tower's features
    dropout: float = 0.0  # in the head, before each of its two layers
    freeze: str = "nothing"  # "nothing", "tower", or a stage ("layer2"): it and all before it
    sync_batchnorm: bool = False  # batch statistics over all ranks; for small batches per GPU
    channels_last: bool = True
    compile: bool = False  # torch.compile the model before training
    init_temperature: float = 0.07
    max_logit_scale: float = 100.0
    normalize: Literal["auto", "clip", "imagenet", "half"] = "auto"  # auto: what the weights ask for, else clip

    def __post_init__(self) -> None:
        if self.hidden_dim < 0:
            raise ConfigError(f"model.hidden_dim is {self.hidden_dim}: give a width, or 0 for the tower's own.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"model.dropout is {self.dropout}: it is a probability, from 0 to below 1.")
        if self.init_temperature <= 0 or 1 / self.init_temperature > self.max_logit_scale:
            raise ConfigError(
                f"model.init_temperature is {self.init_temperature}: give at least 1 / max_logit_scale = "
                f"{1 / self.max_logit_scale:g}."
            )
        if is_path(self.weights) and self.normalize == "auto":
            raise ConfigError(
                f"model.weights is the file {self.weights}, which does not say how its pictures were normalised: "
                "set model.normalize to imagenet (torchvision's own weights), half or clip."
            )


def is_path(weights: str) -> bool:
    """Whether `weights` names a file, not one of torchvision's weights."""
    return "/" in weights or weights.endswith((".pth", ".pt", ".safetensors"))
