"""What a tower is: the only file to read for who adds a family of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from core.errors import ConfigError, ShardclipError
from trainer.pictures.normalization import Normalization


@dataclass(frozen=True)
class Tower:
    """A network that turns pictures `(B, 3, image_size, image_size)`, normalised, into one vector `(B, width)` each.

    `width` is measured on a picture without data: what a library says of it need not be true. Measuring takes no
    memory, draws no random number and changes nothing in the module.

    Raises:
        ConfigError: the module does not take pictures of this size, or gives no single vector for each.
    """

    name: str  # as a recipe says it
    module: nn.Module  # float32 on the CPU, without its classifier, with its weights; `(B, width, 1, 1)` will do too
    image_size: int  # pixels
    normalization: Normalization | None = None  # of the pictures its weights were made from; None: they do not say
    width: int = field(init=False)

    def __post_init__(self) -> None:
        with built_for(self.name, self.image_size):
            shape = _output_shape(self.module, self.image_size)
        width = math.prod(shape[1:])
        if shape[1:2] != (width,):
            raise ConfigError(f"model.tower: {self.name} gives {shape} of one picture, not one vector. Choose another.")
        object.__setattr__(self, "width", width)


class Family(Protocol):
    """Builds the towers of one origin: a line in `TOWERS`. Recipes say `model.tower: family:name`.

    Args:
        name: behind the colon; an unknown one ends in a ConfigError that says the nearest.
        weights: "none", one of the family's own names, or the path of a state dict (`trainer.models.config.is_path`).
            `weights.py` reads such a file and fills a module with nothing left over and nothing missing.
        image_size: pixels. A network of fixed size is built for this one, and its weights are fitted to it.

    Raises:
        ConfigError: there is no such tower, or it cannot have this size.
        WeightsError: the weights are missing or those of another tower.
    """

    def __call__(self, name: str, weights: str, image_size: int) -> Tower: ...


@contextmanager
def built_for(name: str, image_size: int) -> Iterator[None]:
    """Around what a library does at a size that it may not like: its errors become one sentence."""
    try:
        yield
    except ShardclipError:
        raise
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"model.tower: {name} does not take pictures of {image_size} pixels ({reason_of(error)}). "
            "Set another image_size."
        ) from error


def reason_of(error: BaseException) -> str:
    """A library's error in one line: the first of them often is a heading."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(line.strip() for line in lines[:2])


def expect_whole_patches(name: str, image_size: int, patch_size: int) -> None:
    """Raise where patches would leave a rim of the picture unseen."""
    below = image_size // patch_size * patch_size
    if below != image_size:
        sizes = f"{below} or {below + patch_size}" if below else str(patch_size)
        raise ConfigError(
            f"model.tower: {name} cuts pictures into patches of {patch_size} pixels, and {image_size} is no multiple "
            f"of that. Set image_size to {sizes}."
        )


def _output_shape(module: nn.Module, image_size: int) -> tuple[int, ...]:
    """Of one picture, computed on a copy without data."""
    tensors: list[Tensor] = [*module.parameters(), *module.buffers()]
    twin = copy.deepcopy(module, {id(tensor): tensor.detach().to("meta") for tensor in tensors}).eval()
    with torch.no_grad():
        return tuple(twin(torch.empty(1, 3, image_size, image_size, device="meta")).shape)
