"""Torchvision's image classifiers as towers: `model.tower: resnet50`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import WeightsEnum
from torchvision.models.vision_transformer import interpolate_embeddings

from core.errors import WeightsError, did_you_mean
from trainer.models.config import is_path
from trainer.models.tower_names import NO_TOWERS, unknown_torchvision
from trainer.models.towers.tower import Tower, built_for, expect_whole_patches
from trainer.models.towers.weights import TO_BE_A_PATH, Shapes, fill, read_state_dict, shapes
from trainer.pictures.normalization import Normalization

NAMES = tuple(name for name in torchvision.models.list_models(module=torchvision.models) if name not in NO_TOWERS)
_POSITIONS = "encoder.pos_embedding"  # (1, 1 + patches, D), the class token first


def torchvision_tower(name: str, weights: str, image_size: int) -> Tower:
    """The classifier without its last linear layer."""
    if name not in NAMES:
        raise unknown_torchvision(name, NAMES)
    normalization = None
    if weights != "none" and not is_path(weights):
        normalization = _normalization(_published(name, weights))
    with built_for(name, image_size):
        module = torchvision.models.get_model(name, weights=None, **_size_options(name, image_size))
    last_layer = _take_off_last_layer(module)
    if weights != "none":
        if is_path(weights):
            state, origin = read_state_dict(Path(weights)), weights
        else:
            state, origin = _download(_published(name, weights), name), f"{name} {weights}"
        state = {key: tensor for key, tensor in state.items() if key.rpartition(".")[0] != last_layer}
        fill(module, _with_positions_for(state, name, image_size), name, origin, _likely_tower)
    return Tower(name, module, image_size, normalization)


def library_call(name: str, image_size: int) -> tuple[str, str]:
    """How torchvision's own code makes the same module: the call, and the name of the layer that is then taken off."""
    options = {"weights": None, **_size_options(name, image_size)}
    with torch.device("meta"):
        last_layer = _take_off_last_layer(torchvision.models.get_model(name, **options))
    written = "".join(f", {key}={value!r}" for key, value in options.items())
    return f"torchvision.models.get_model({name!r}{written})", last_layer


def _take_off_last_layer(module: nn.Module) -> str:
    """Replace the last linear layer by nothing; returns its name."""
    last_name = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)][-1]
    parent_name, _, child_name = last_name.rpartition(".")
    setattr(module.get_submodule(parent_name), child_name, nn.Identity())
    return last_name


def _size_options(name: str, image_size: int) -> dict[str, Any]:
    """Networks of a fixed size are built for this one; all others take any."""
    if name.startswith("vit_"):
        expect_whole_patches(name, image_size, _patch_size(name))
        return {"image_size": image_size}
    if name.startswith("maxvit_"):
        return {"input_size": (image_size, image_size)}
    return {}


def _patch_size(name: str) -> int:
    return int(name.rpartition("_")[2])  # vit_b_16


def _with_positions_for(state: Mapping[str, Tensor], name: str, image_size: int) -> Mapping[str, Tensor]:
    """A vision transformer's state for pictures of this size: its learned positions are interpolated."""
    positions = state.get(_POSITIONS)
    if not name.startswith("vit_") or positions is None or positions.ndim != 3 or len(positions) != 1:
        return state
    if math.isqrt(positions.shape[1] - 1) ** 2 != positions.shape[1] - 1:  # not of a square picture: it will not fit
        return state
    return interpolate_embeddings(image_size, _patch_size(name), dict(state))


def _published(name: str, weights: str) -> WeightsEnum:
    """Torchvision's weights of this name."""
    known = torchvision.models.get_model_weights(name)
    if weights not in known.__members__:
        raise WeightsError(
            f"model.weights: torchvision has no weights '{weights}' for {name}, and it is not the path of a file "
            f"{TO_BE_A_PATH}.{did_you_mean(weights, ['none', *known.__members__])}"
        )
    return known[weights]


def _normalization(weights: WeightsEnum) -> Normalization:
    transforms = weights.transforms()
    return Normalization(tuple(transforms.mean), tuple(transforms.std))


def _download(weights: WeightsEnum, name: str) -> Mapping[str, Tensor]:
    try:
        return weights.get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:  # RuntimeError: torch.hub's word for a wrong hash
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        download = f"import torchvision; torchvision.models.get_model('{name}', weights='{weights.name}')"
        raise WeightsError(
            f"model.weights: {name} {weights.name} is not in {folder} and cannot be downloaded ({error}); run "
            f'`python -c "{download}"` where there is a network and copy {Path(weights.url).name} into that folder.'
        ) from error


def _likely_tower(given: Shapes) -> str:
    """The end of the sentence: the tower whose tensors these are, told by names and shapes."""
    shares = {}
    for name in NAMES:
        if name.startswith("regnet"):  # cannot be built without memory for its weights
            continue
        with torch.device("meta"):
            known = shapes(torchvision.models.get_model(name).state_dict())
        shares[name] = sum(known.get(key) == shape for key, shape in given.items()) / max(len(known), len(given))
    likely = max(shares, key=lambda name: shares[name])  # vit_b_16 and vit_b_32 differ in two tensors
    if shares[likely] > 0.95:
        return f" It looks like {likely}: set model.tower={likely}."
    return " It looks like no torchvision classifier."
