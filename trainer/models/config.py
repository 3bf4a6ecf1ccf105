"""The settings of a model."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from core.config import Choice
from core.errors import ConfigError
from core.part_options import one_of
from trainer.models.texts import TEXTS
from trainer.models.thaw import in_order

SUFFIXES = (".pth", ".pt", ".safetensors")  # of state dicts
_CHECKPOINT = re.compile(r"/(best|latest|step-\d+)/?$")  # what names one, though it may not be there


@dataclass(frozen=True)
class ModelConfig:
    """A tower and a head of two linear layers for pictures; for captions stored embeddings, or a trained tower."""

    moved_keys: ClassVar[dict[str, str]] = {
        "init_temperature": "it is an option of the objective now: objective: {name: infonce, init_temperature: ...}",
        "max_logit_scale": "it is an option of the objective now: objective: {name: infonce, max_logit_scale: ...}",
    }

    tower: str = "resnet50"  # of torchvision by name; timm:NAME
    weights: str = "none"  # "none", a torchvision name such as "IMAGENET1K_V2", or the path of a state dict
    hidden_dim: int = 0  # between the head's two layers; 0: what the objective asks for, else as wide as the tower
    embed_dim: int = 0  # of the head's output; 0: as the captions' embeddings, or what the objective asks for
    dropout: float = 0.0  # in the head, before each of its two layers
    freeze: str = "nothing"  # "nothing", "tower", or a stage ("layer2"): it and all before it
    # What `freeze` is after so many steps, or so large a share of the run: {500: layer3, 1000: nothing}, {25%: layer3}.
    thaw: dict[str, str] = field(default_factory=dict)
    sync_batchnorm: bool = False  # batch statistics over all ranks; for small batches per GPU
    channels_last: bool = True  # memory format of pictures and convolutions: quicker on GPUs
    compile: bool = False  # torch.compile the model before training
    normalize: Literal["auto", "clip", "imagenet", "half"] = "auto"  # auto: what the weights ask for, else clip
    # captions: their stored embeddings, or a text tower that is trained
    text: Choice = field(default=Choice("column"), metadata=one_of(TEXTS))

    def __post_init__(self) -> None:
        for name in ("hidden_dim", "embed_dim"):
            if getattr(self, name) < 0:
                raise ConfigError(f"model.{name} is {getattr(self, name)}: give a width, or 0 for the usual one.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"model.dropout is {self.dropout}: it is a probability, from 0 to below 1.")
        if self.thaw and self.freeze == "nothing":
            raise ConfigError(
                "model.thaw is set, but model.freeze is nothing. Say what is frozen at first: freeze: tower."
            )
        in_order(self.thaw)
        if Path(self.weights).is_dir() or _CHECKPOINT.search(self.weights):
            raise ConfigError(
                f"model.weights is the run or checkpoint {self.weights}; it takes published weights of a tower. Begin "
                f"with what a run has trained: start_from={self.weights} (start_parts=tower for its tower alone)."
            )
        if is_path(self.weights) and self.normalize == "auto":
            raise ConfigError(
                f"model.weights is the file {self.weights}, which does not say how its pictures were normalised: "
                "set model.normalize to imagenet (torchvision's own weights), half or clip."
            )


@dataclass(frozen=True)
class BareTower:
    """A tower by itself, without a head: published weights, or ones that are drawn."""

    tower: str  # of torchvision by name; timm:NAME
    weights: str = "none"  # "none": drawn by `seed`; a torchvision name such as "IMAGENET1K_V2", or a state dict's path
    normalize: Literal["auto", "clip", "imagenet", "half"] = "auto"  # auto: what the weights ask for, else clip
    image_size: int | None = None  # pixels that it sees; None: as the shards store them
    seed: int = 0  # of weights that are drawn

    def __post_init__(self) -> None:
        if self.image_size is not None and self.image_size < 1:
            raise ConfigError(f"model.image_size is {self.image_size}: give pixels, or leave it out for the shards'.")
        ModelConfig(tower=self.tower, weights=self.weights, normalize=self.normalize)

    def __str__(self) -> str:
        """For people, and as a name in results."""
        return f"{self.tower} ({'untrained' if self.weights == 'none' else self.weights.rsplit('/', 1)[-1]})"


def is_path(weights: str) -> bool:
    """Whether `weights` names a file, not one of torchvision's weights."""
    return "/" in weights or weights.endswith(SUFFIXES)
