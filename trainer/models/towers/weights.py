"""Pretrained weights into a tower: a state dict from a file, and the check that it is the tower's own."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from core.errors import WeightsError

Shapes = dict[str, tuple[int, ...]]
TO_BE_A_PATH = "(a path has a '/' or ends in .pth)"  # in sentences about a name that is none


def read_state_dict(path: Path, key: str = "model.weights") -> Mapping[str, Tensor]:
    """The tensors of a `.pth`, `.pt` or `.safetensors` file; no code in it is run.

    Args:
        key: of the recipe, for the sentence of an error.

    Raises:
        WeightsError: it is missing, damaged, or holds anything else.
    """
    if not path.is_file():
        raise WeightsError(f"{key}: there is no file {path}; give the path of the tower's state dict.")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise WeightsError(f"{key}: {path} is damaged or holds more than tensors ({reason}).") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        held = f"keys {', '.join(map(str, list(state)[:3]))}" if isinstance(state, Mapping) else type(state).__name__
        raise WeightsError(f"{key}: {path} is no state dict of tensors (it holds {held}); save the model's own.")
    return state


def fill(
    module: nn.Module,
    state: Mapping[str, Tensor],
    tower_name: str,
    origin: str,
    likely_tower: Callable[[Shapes], str] = lambda given: "",
) -> None:
    """Load `state` into `module`: every tensor, of the same name and shape, and no other.

    Args:
        state: without the classifier's own last layer.
        origin: of the weights, for the sentence.
        likely_tower: the end of that sentence: which tower these tensors are of.

    Raises:
        WeightsError: they are of another tower.
    """
    wanted, given = shapes(module.state_dict()), shapes(state)
    wrong = [f"{name} is missing" for name in wanted if name not in given]
    wrong += [f"{name} is not in {tower_name}" for name in given if name not in wanted]
    wrong += [
        f"{name} is {given[name]}, not {shape}" for name, shape in wanted.items() if given.get(name, shape) != shape
    ]
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise WeightsError(
            f"model.weights: {origin} does not fit {tower_name}: {'; '.join(wrong[:3])}{more}.{likely_tower(given)}"
        )
    module.load_state_dict(state)


def shapes(state: Mapping[str, Tensor]) -> Shapes:
    """The shape of every tensor."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}
