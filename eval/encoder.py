"""An image encoder and the text encoder it was trained against, both from a checkpoint's own word."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.columns import text_column_of
from core.config import Choice, convert, from_mapping
from core.errors import CheckpointError, ConfigError, WeightsError, did_you_mean
from core.manifest import MANIFEST_NAME, ImageSpec, TextEncoderSpec, load_manifest
from core.parts import build
from core.shard_set import ShardSet
from core.storage import exists, join
from core.text_encoders import TEXT_ENCODERS, choice_of
from core.text_encoders.encode import encode_captions
from trainer.checkpoint.folder import STORED_SIZE, resolve_checkpoint
from trainer.checkpoint.weights import read_weights
from trainer.config import TrainConfig
from trainer.data.feature_column import state_sha256
from trainer.models.build import rebuild_encoder
from trainer.models.config import BareTower
from trainer.models.encoder import Encoder
from trainer.models.texts.tower import TextTower
from trainer.objectives import OBJECTIVES
from trainer.objectives.objective import Objective
from trainer.pictures.augment import Normalize
from trainer.run.recipe_model import bare_encoder, untrained_model

DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True, eq=False)
class ReadyEncoder:
    """Ready to encode pictures, and captions where it compares them."""

    known_as: str  # in sentences: the checkpoint's path, or the tower's name
    run_dir: Path | None  # None: nothing was trained
    model: Encoder
    objective: Objective
    scalars: dict[str, Tensor]  # of the objective
    normalize: Callable[[Tensor], Tensor]
    identity: dict[str, Any]
    fingerprint: str  # of the weights: features of equal fingerprints belong together

    @property
    def name(self) -> str:
        """In results: of the checkpoint's folder, or of the tower."""
        return self.known_as

    @property
    def compares_text(self) -> bool:
        """Whether it was trained to be compared with captions."""
        return self.objective.needs_text

    @property
    def text_encoder(self) -> TextEncoderSpec | None:
        """The frozen encoder whose embeddings it was trained against; None where there was none."""
        spec = self.identity["text_encoder"]
        return TextEncoderSpec(**spec) if spec else None

    @property
    def text_name(self) -> str | None:
        """What embeds captions, for people; None where captions played no part."""
        if trained := self.identity["model"]["text"]:
            return f"{trained['encoder']['name']}, trained with the pictures"
        return str(self.text_encoder) if self.text_encoder else None

    @property
    def embed_dim(self) -> int:
        """Width of the features that pictures are compared by."""
        model = self.identity["model"]
        return int(model["embed_dim"]) if model["keeps_head"] else self.model.image_encoder.tower_dim

    @property
    def logit_scale(self) -> float:
        """1 / temperature of probabilities; 1 where the objective learns none."""
        return float(self.scalars.get("scale", 1.0))


@dataclass(frozen=True, eq=False)
class LoadedEncoder(ReadyEncoder):
    """That of a checkpoint."""

    path: Path

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.path.name

    @property
    def objective_name(self) -> str:
        """Its name in the table."""
        return _objective_of(self.identity, self.path).name

    @property
    def stored_image(self) -> ImageSpec:
        """How the pictures it was trained on were stored: what any other picture becomes before `normalize`.

        Raises:
            CheckpointError: an older checkpoint does not say their size, and its training set is not there either.
        """
        image, config = self.identity["image"], self.identity["config"]
        if STORED_SIZE in self.identity:
            return ImageSpec(self.identity[STORED_SIZE], image["fit"])
        if config.get("image_size") is None:
            return ImageSpec(image["size"], image["fit"])
        url = config["data"]["train"][0]
        if exists(join(url, MANIFEST_NAME)):
            return load_manifest(url).image
        raise CheckpointError(
            f"{self.path}: does not say how large its training pictures were stored, as newer checkpoints do, and its "
            f"training set {url} is not there to ask. Put that set back in its place."
        )


def chosen_device(name: str) -> torch.device:
    """The device that `auto` (a GPU where there is one), `cpu` or `cuda` means.

    Raises:
        ConfigError: another word, or cuda where there is none.
    """
    if name not in DEVICES:
        raise ConfigError(f"device is '{name}'.{did_you_mean(name, DEVICES)}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: cuda is asked for and there is none. Use device=auto or device=cpu.")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name, int(os.environ.get("LOCAL_RANK", "0"))) if name == "cuda" else torch.device(name)


def load_encoder(checkpoint: Path, device: torch.device) -> LoadedEncoder:
    """The checkpoint that a run folder, `RUN/best`, `RUN/latest` or a checkpoint folder means, on the device.

    Raises:
        CheckpointError: missing, damaged, or of a model that this version does not build.
    """
    path = resolve_checkpoint(checkpoint)
    weights = read_weights(path)
    model = rebuild_encoder(weights.identity["model"])
    try:
        model.load_state_dict(weights.encoder)
    except RuntimeError as error:
        raise CheckpointError(
            f"{path}: its weights do not fit the model it names: {str(error).splitlines()[-1].strip()}"
        ) from None
    image = weights.identity["image"]
    normalize = Normalize(image["size"], image["mean"], image["std"])
    objective: Objective = build(OBJECTIVES, _objective_of(weights.identity, path), "objective")
    scalars = objective.scalars(weights.learned)
    return LoadedEncoder(
        known_as=str(path),
        run_dir=path.parent.parent,
        model=model.to(device).eval(),
        objective=objective,
        scalars=scalars,
        normalize=normalize,
        identity=weights.identity,
        fingerprint=weights.fingerprint,
        path=path,
    )


def tower_alone(tower: BareTower, stored_size: int, device: torch.device) -> ReadyEncoder:
    """A row of the towers' table by itself, an encoder of pictures alone.

    Args:
        stored_size: of the pictures, where the tower names no size; pixels.

    Raises:
        ConfigError: unknown tower, or one that cannot have this size.
        WeightsError: the weights are missing or those of another tower.
    """
    size = tower.image_size or stored_size
    model = bare_encoder(tower, size)
    mean, std = model.normalization
    return ReadyEncoder(
        known_as=str(tower),
        run_dir=None,
        model=model.to(device).eval(),
        objective=OBJECTIVES["nt_xent"](),  # of those that compare no captions
        scalars={},
        normalize=Normalize(size, mean, std),
        identity={"model": model.describe(), "config": {}, "text_encoder": None},
        fingerprint=f"{state_sha256(model.image_encoder.tower)} {size} {mean} {std}",
    )


def untrained_encoder(encoder: LoadedEncoder, device: torch.device) -> LoadedEncoder:
    """The same encoder as its run began, before the first step (`untrained_model`).

    Raises:
        ConfigError: the checkpoint does not hold a recipe that this version reads.
        WeightsError, CheckpointError: the weights that the recipe began with are not on this machine.
    """
    identity = encoder.identity
    config = from_mapping(TrainConfig, identity["config"], f"{encoder.path}: its recipe")
    size = identity["model"].get("image_size", identity["image"]["size"])
    model = untrained_model(config, encoder.text_encoder, size)
    scalars = {name: value.detach() for name, value in model.scalars().items()}
    return replace(
        encoder, model=model.encoder.to(device).eval(), scalars=scalars, fingerprint=f"{encoder.fingerprint} untrained"
    )


def _objective_of(identity: dict[str, Any], path: Path) -> Choice:
    chosen: Choice = convert(identity["config"].get("objective", "infonce"), Choice, f"{path}: objective")
    return chosen


def open_same_text(encoder: ReadyEncoder, urls: Sequence[str], cache_dir: Path | None) -> ShardSet:
    """The shard sets with the caption embeddings that the checkpoint was trained against: stored, or a text column's.

    Raises:
        CheckpointError: the sets have neither; says the command that makes the column.
    """
    if encoder.model.text_encoder is not None:
        return ShardSet.open(urls, cache_dir)
    trained = encoder.text_encoder
    assert trained is not None, "the checkpoint compares captions"
    stored = [load_manifest(url).text_encoder for url in urls]
    if all(spec == trained for spec in stored):
        return ShardSet.open(urls, cache_dir, text="")
    if name := text_column_of(urls, trained):
        return ShardSet.open(urls, cache_dir, text=name)
    other = next((spec for spec in stored if spec not in (trained, None)), None)
    has = f"its captions were embedded by {other}" if other else "has no caption embeddings"
    choice = choice_of(trained)
    options = "".join(f" {key}={value}" for key, value in choice.options.items())
    raise CheckpointError(
        f"{' + '.join(urls)}: {has}; {encoder.known_as} was trained against {trained}. Add them to each with "
        f"`shardclip column text {' '.join(urls)} encoder={choice.name}{options}`."
    )


def trained_embedder(tower: TextTower, device: torch.device, batch_size: int = 64) -> Callable[..., np.ndarray]:
    """A function from texts to `(n, D)` unit embeddings, by the text tower that was trained."""
    return lambda texts: tower.embed_texts(texts, device, batch_size)


def text_embedder(
    spec: TextEncoderSpec, choice: Choice | None, device: torch.device, batch_size: int = 64
) -> Callable[[Sequence[str]], np.ndarray]:
    """A function from texts to `(n, D)` unit embeddings, by the very encoder that made the shards' embeddings.

    Args:
        choice: where to find it; None: by the name and revision in `spec`.

    Raises:
        WeightsError: what is found is another encoder, or its weights are not on this machine.
    """
    encoder = build(TEXT_ENCODERS, choice or choice_of(spec), "text_encoder", device=str(device))
    if encoder.spec != spec:
        raise WeightsError(
            f"text_encoder: {encoder.spec} is found, the checkpoint was trained against {spec}."
            " Name the encoder of the build recipe in the evaluation's text_encoder."
        )

    def embed(texts: Sequence[str]) -> np.ndarray:
        return encode_captions(encoder, texts, batch_size, lambda done: None).astype(np.float32)

    return embed
