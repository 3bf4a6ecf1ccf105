"""Features: a frozen tower's pooled outputs for each picture, so that a head trains without reading a pixel.

Free of torch until it works: the command line reads the options of every kind.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from core.column_kind import ColumnPlan, ColumnWork
from core.columns import FEATURES, ColumnValues, ShardValues
from core.config import load_config
from core.errors import ConfigError, DataError
from core.precision import Precision, autocast_type, choose_precision
from core.shard_set import ShardSet
from trainer.models.config import BareTower

if TYPE_CHECKING:
    import torch
    from torch import nn

    from trainer.config import TrainConfig
    from trainer.models.encoder import Encoder


@dataclass(frozen=True)
class FrozenTower:
    """A tower in eval mode on its device, and what its features are called."""

    tower: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int  # pixels
    precision: Precision
    device: torch.device
    origin: dict[str, Any]


@dataclass(frozen=True)
class TowerOptions(BareTower):
    """Which tower, as the command or a recipe says."""

    precision: Literal["auto", "no", "bf16", "fp16"] = "no"


def feature_column(
    work: ColumnWork,
    name: str = "",
    recipe: Path | None = None,
    tower: str | None = None,
    weights: str | None = None,
    normalize: Literal["auto", "clip", "imagenet", "half"] | None = None,
    image_size: int | None = None,
    precision: Precision | None = None,
    batch_size: int = 64,
    num_workers: int = 2,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> ColumnPlan:
    """A frozen tower's pooled outputs, `<f4` `(W,)`.

    Args:
        name: of the column; default `features.TOWER`, `features.FAMILY.TOWER`.
        recipe: a training recipe that gives tower, weights, normalize, image_size and precision; options win.
        tower, weights, normalize, image_size, precision: as in a training recipe.
        batch_size: pictures at a time; another one may change the last bit.

    Raises:
        ConfigError: no tower or no weights are named, or the tower is unknown.
        WeightsError: the weights are missing or those of another tower.
    """
    given = {"tower": tower, "weights": weights, "normalize": normalize, "image_size": image_size}
    options = tower_options({**given, "precision": precision}, recipe)
    if batch_size < 1 or num_workers < 0:
        raise ConfigError(
            f"column 'features': batch_size is {batch_size} and num_workers {num_workers}: at least 1 and 0 are needed."
        )
    frozen = load_tower(options, work.shard_set.image.size, _device(device))
    stored = work.shard_set.image
    origin = {"tower": frozen.origin, "fit": stored.fit, "stored_size": stored.size}  # adopted pictures are fitted anew

    def make() -> ColumnValues:
        return ColumnValues(_parts(work, frozen, batch_size, num_workers), figures={"pictures": len(work.shard_set)})

    width = _width(frozen)
    return ColumnPlan(name or default_column_name(options.tower), FEATURES, "sample", "<f4", (width,), origin, make)


def default_column_name(tower: str) -> str:
    """Of the column: `features.resnet50`, `features.timm.resnet50`."""
    return f"{FEATURES}.{tower.replace(':', '.')}"


def tower_options(given: dict[str, Any], recipe: Path | None) -> TowerOptions:
    """The options given; what is not, from the recipe.

    Raises:
        ConfigError: there is no tower, or it would have random weights.
    """
    values = {key: value for key, value in given.items() if value is not None}
    if recipe is not None:
        from trainer.config import TrainConfig

        config = load_config(TrainConfig, recipe)
        model = config.model
        of_recipe = {"tower": model.tower, "weights": model.weights, "normalize": model.normalize}
        values = {**of_recipe, "image_size": config.image_size, "precision": config.precision, **values}
    if "tower" not in values:
        raise ConfigError("column 'features' needs a tower: tower=resnet50 weights=IMAGENET1K_V2, or recipe=FILE.")
    if values.get("weights", "none") == "none":
        raise ConfigError(
            f"column 'features': tower {values['tower']} has no weights, and random ones say nothing of a picture. "
            "Name them: weights=IMAGENET1K_V2, or the path of a state dict."
        )
    return TowerOptions(**values)


def load_tower(options: TowerOptions, stored_size: int, device: torch.device) -> FrozenTower:
    """The tower as it is before a head, in eval mode.

    Args:
        stored_size: of the set's pictures; used where no image_size is given.
    """
    from trainer.models.build import build_encoder
    from trainer.models.config import ModelConfig
    from trainer.objectives import OBJECTIVES

    config = ModelConfig(
        tower=options.tower, weights=options.weights, normalize=options.normalize, freeze="tower", channels_last=False
    )
    size = options.image_size or stored_size
    model = build_encoder(config, OBJECTIVES["infonce"](), 1, size).eval()  # the head is not used
    tower = model.image_encoder.tower
    precision = choose_precision(options.precision, device)
    mean, std = model.normalization
    origin = tower_origin(
        tower, name=options.tower, weights=options.weights, size=size, mean=mean, std=std, precision=precision
    )
    return FrozenTower(tower.to(device), tuple(mean), tuple(std), size, precision, device, origin)


def tower_origin(
    tower: nn.Module,
    *,
    name: str,
    weights: str,
    size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    precision: str,
) -> dict[str, Any]:
    """What a features column's `origin["tower"]` says: a run whose recipe gives the same may use the column.

    Args:
        tower: without its last layer, its weights loaded.
        weights: as in a recipe; of a path the last part counts.
        size: of the pictures that the tower sees, pixels.
    """
    return {
        "name": name,
        "weights": weights.rsplit("/", 1)[-1],
        "weights_sha256": state_sha256(tower),
        "size": size,
        "mean": list(mean),
        "std": list(std),
        "precision": precision,
    }


def expect_features_of(model: Encoder, config: TrainConfig, shard_set: ShardSet) -> None:
    """Raise where the features column that a recipe names was not made by the tower that its head is trained on.

    Precision is not compared, since either serves.

    Raises:
        ConfigError: another kind of column, tower, weights, size, normalisation or fit; says both.
    """
    column = str(config.data.image_features)
    mean, std = model.normalization
    named, size = config.model, config.image_size or shard_set.image.size
    wanted = tower_origin(
        model.image_encoder.tower,
        name=named.tower,
        weights=named.weights,
        size=size,
        mean=mean,
        std=std,
        precision="no",
    )
    head = shard_set.column(column).head
    where = f"data.image_features: column '{column}' of {shard_set.urls[0]}"
    if head.kind != FEATURES:
        raise ConfigError(f"{where} is {head.kind}. Name a column of features (`shardclip column features`).")
    made = {**head.origin.get("tower", {}), **head.origin}  # one that an older version made may lack a value
    for name, value in {**wanted, "fit": shard_set.image.fit, "stored_size": shard_set.image.size}.items():
        if name not in ("weights", "precision") and made.get(name) != value:
            raise ConfigError(
                f"{where} was made with {name} {made.get(name)}, the recipe's tower has {value}. Make another one "
                "with `shardclip column features ... recipe=` this recipe, and name it."
            )


def state_sha256(module: nn.Module) -> str:
    """sha256 over names, types, shapes and bytes of a module's state, in its order."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(_bytes_type()).numpy().data)
    return digest.hexdigest()


def _parts(work: ColumnWork, frozen: FrozenTower, batch_size: int, num_workers: int) -> Iterator[ShardValues]:
    """Features shard by shard, as they are computed."""
    from trainer.data.loader import EvalLoader
    from trainer.data.prefetch import to_device
    from trainer.pictures.augment import Normalize

    shard_set = work.shard_set
    loader = EvalLoader(
        shard_set,
        batch_size=batch_size,
        columns={},  # adopted sets may have no caption embeddings, and none are needed
        num_workers=num_workers,
        pin_memory=frozen.device.type == "cuda",
    )
    normalize = Normalize(frozen.size, frozen.mean, frozen.std)
    sizes, done = shard_set.shard_sizes.tolist(), 0
    waiting = np.empty((0, _width(frozen)), "<f4")
    try:
        with work.progress("pictures", len(shard_set)) as show:
            for batch in to_device(iter(loader), frozen.device):
                assert batch.images is not None
                features = _forward(frozen, normalize(batch.images))
                waiting = np.concatenate([waiting, features])
                done += len(features)
                show(done)
                while sizes and len(waiting) >= sizes[0]:
                    size = sizes.pop(0)
                    yield ShardValues(_finite(shard_set, waiting[:size], done - len(waiting)))
                    waiting = waiting[size:]
    finally:
        loader.close()


def _forward(frozen: FrozenTower, images: torch.Tensor) -> np.ndarray:
    """`(B, W)` float32."""
    import torch

    exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    with torch.inference_mode(), exact, _autocast(frozen):
        features = frozen.tower(images).flatten(1)
    return np.asarray(features.float().cpu().numpy(), "<f4")


def _width(frozen: FrozenTower) -> int:
    """Measured: what a tower calls its width need not be what it gives."""
    import torch

    return int(_forward(frozen, torch.zeros(1, 3, frozen.size, frozen.size, device=frozen.device)).shape[1])


def _finite(shard_set: ShardSet, features: np.ndarray, first: int) -> np.ndarray:
    unfit = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(unfit):
        raise DataError(f"{shard_set.describe(first + int(unfit[0]))}: its features are not finite. Use precision=no.")
    return features


def _autocast(frozen: FrozenTower) -> AbstractContextManager[object]:
    import torch

    dtype = autocast_type(frozen.precision)
    return nullcontext() if dtype is None else torch.autocast(frozen.device.type, dtype)


def _device(name: str) -> torch.device:
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("column 'features': device is cuda and there is none. Use device=auto or device=cpu.")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _bytes_type() -> torch.dtype:
    import torch

    return torch.uint8
