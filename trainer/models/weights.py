"""Pretrained weights into a tower: torchvision's by name, or a state dict from a file."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from urllib.error import URLError

import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from core.errors import WeightsError, did_you_mean
from trainer.models.config import is_path
from trainer.models.tower import TOWERS
from trainer.pictures.normalization import Normalization

Shapes = dict[str, tuple[int, ...]]


def load_weights(tower: nn.Module, tower_name: str, last_layer: str, weights: str) -> None:
    """Fill `tower`; the classifier's own last layer `last_layer` is left out.

    Raises:
        WeightsError: no such weights, not on this machine and not downloadable, no state dict, or of another tower.
    """
    if weights == "none":
        return
    if is_path(weights):
        state, origin = read_state_dict(Path(weights), "model.weights"), weights
    else:
        state, origin = _download(published(tower_name, weights), tower_name), f"{tower_name} {weights}"
    state = {name: tensor for name, tensor in state.items() if name.rpartition(".")[0] != last_layer}
    _check_fit(_shapes(tower.state_dict()), _shapes(state), tower_name, origin)
    tower.load_state_dict(state)


def published(tower_name: str, weights: str) -> WeightsEnum:
    """Torchvision's weights of this name."""
    known = torchvision.models.get_model_weights(tower_name)
    if weights not in known.__members__:
        names = ["none", *known.__members__]
        raise WeightsError(
            f"model.weights: torchvision has no weights '{weights}' for {tower_name}, and it is not the path of a file "
            f"(a path has a '/' or ends in .pth).{did_you_mean(weights, names)}"
        )
    return known[weights]


def published_normalization(tower_name: str, weights: str) -> Normalization:
    """How the pictures were normalised that torchvision's weights were trained on."""
    transforms = published(tower_name, weights).transforms()
    return Normalization(tuple(transforms.mean), tuple(transforms.std))


def _download(weights: WeightsEnum, tower_name: str) -> Mapping[str, Tensor]:
    try:
        return weights.get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:  # RuntimeError: torch.hub's word for a wrong hash
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        download = f"import torchvision; torchvision.models.get_model('{tower_name}', weights='{weights.name}')"
        raise WeightsError(
            f"model.weights: {tower_name} {weights.name} is not in {folder} and cannot be downloaded ({error}); run "
            f'`python -c "{download}"` where there is a network and copy {Path(weights.url).name} into that folder.'
        ) from error


def read_state_dict(path: Path, key: str) -> Mapping[str, Tensor]:
    """A file of tensors by name.

    Args:
        key: of the recipe, for the sentence of an error.

    Raises:
        WeightsError: no such file, a damaged one, or one that holds more than tensors.
    """
    if not path.is_file():
        raise WeightsError(f"{key}: there is no file {path}; give the path of a torchvision state dict.")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise WeightsError(f"{key}: {path} is damaged or holds more than tensors ({reason}).") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        held = f"keys {', '.join(map(str, list(state)[:3]))}" if isinstance(state, Mapping) else type(state).__name__
        raise WeightsError(f"{key}: {path} is no state dict of tensors (it holds {held}); save the model's own.")
    return state


def _check_fit(wanted: Shapes, given: Shapes, tower_name: str, origin: str) -> None:
    wrong = [f"{name} is missing" for name in wanted if name not in given]
    wrong += [f"{name} is not in {tower_name}" for name in given if name not in wanted]
    wrong += [
        f"{name} is {given[name]}, not {shape}" for name, shape in wanted.items() if given.get(name, shape) != shape
    ]
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        likely = _likely_tower(given)
        if any(name.startswith("image_encoder.") for name in given):
            likely = f" It is an encoder of a run: take it over with start_from={origin}."
        raise WeightsError(f"model.weights: {origin} does not fit {tower_name}: {'; '.join(wrong[:3])}{more}.{likely}")


def _likely_tower(given: Shapes) -> str:
    """The end of the sentence: the tower whose tensors these are, told by names and shapes."""
    for name in TOWERS:
        if name.startswith("regnet"):  # cannot be built without memory for its weights
            continue
        with torch.device("meta"):
            shapes = _shapes(torchvision.models.get_model(name).state_dict())
        shared = sum(shapes.get(key) == shape for key, shape in given.items())
        if shared > 0.95 * max(len(shapes), len(given)):
            return f" It looks like {name}: set model.tower={name}."
    return " It looks like no torchvision classifier."


def _shapes(state: Mapping[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}
