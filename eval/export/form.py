"""What a form of export is and is given: who adds one reads this file and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from core.errors import ShardclipError
from eval.encoder import LoadedEncoder

HEAD = "head.safetensors"
MOST_APART = 1e-4  # of a feature, between what was trained and what leaves
_NUM_PICTURES = 3  # on which both are compared


class Form(Protocol):
    """Writes an encoder's files into a folder; a line in `FORMS`.

    Args:
        encoder: on the CPU, in eval mode; every tensor is contiguous.
        folder: empty; a model card and `encoder.json` join what is written.

    Returns:
        Python code for the model card that loads the folder `FOLDER` (a `Path`) and ends with a function
        `encode(pictures)`: `(B, 3, S, S)` floats from 0 to 1 to `(B, D)` unit vectors.

    Raises:
        ConfigError: the encoder's tower is not of this form's library, or the library is not installed.
    """

    def __call__(self, encoder: LoadedEncoder, folder: Path) -> str: ...


class WholeEncoder(nn.Module):
    """Pictures `(B, 3, S, S)` from 0 to 1 to `(B, D)` unit vectors: normalisation, tower and head in one."""

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: LoadedEncoder) -> None:
        super().__init__()
        image = encoder.identity["image"]
        self.encoder = encoder.model.image_encoder
        self.keeps_head = encoder.model.keeps_head
        self.register_buffer("mean", torch.tensor(image["mean"]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(image["std"]).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        normalized = (images - self.mean) / self.std
        if self.keeps_head:
            features: Tensor = self.encoder(normalized)
            return features
        return nn.functional.normalize(self.encoder.before_head(normalized), dim=-1)


def some_pictures(encoder: LoadedEncoder, count: int = _NUM_PICTURES) -> Tensor:
    """`(count, 3, S, S)` floats from 0 to 1, the same every time."""
    size = encoder.identity["image"]["size"]
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def expect_equal(features: Tensor, expected: Tensor, form: str) -> None:
    """Raise where what leaves does not give the features of what was trained.

    Raises:
        ShardclipError: a feature is further off than `MOST_APART`.
    """
    apart = float((features - expected).abs().max())
    if not apart <= MOST_APART:
        raise ShardclipError(
            f"export --to {form}: its features are up to {apart:.1e} off those of the checkpoint, {MOST_APART} is the "
            "limit. Nothing was written; choose another form, and please report this tower."
        )


def save_head(encoder: LoadedEncoder, folder: Path) -> None:
    """The head's two layers as `head.safetensors`; none where features are taken before it."""
    if encoder.model.keeps_head:
        save_tensors(encoder.model.image_encoder.head.state_dict(), folder / HEAD)


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """A safetensors file."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def head_code(encoder: LoadedEncoder) -> list[str]:
    """Lines that make `head` in plain PyTorch, and `encode` of `tower` and `head`."""
    image, model = encoder.identity["image"], encoder.identity["model"]
    width = encoder.model.image_encoder.tower_dim
    if encoder.model.keeps_head:
        layers = f"Linear({width}, {model['hidden_dim']}), nn.GELU(), nn.Dropout(0), nn.Linear({model['hidden_dim']}, "
        head = [
            f"head = nn.Sequential(nn.Dropout(0), nn.{layers}{model['embed_dim']}))",
            f'head.load_state_dict(load_file(FOLDER / "{HEAD}"))',
        ]
    else:
        head = ["head = nn.Identity()  # features are taken before the head, which served training alone"]
    return [
        *head,
        "tower.eval(), head.eval()",
        f"mean = torch.tensor({image['mean']}).view(1, 3, 1, 1)",
        f"std = torch.tensor({image['std']}).view(1, 3, 1, 1)",
        "",
        "",
        "@torch.inference_mode()",
        "def encode(pictures):",
        "    features = head(tower((pictures - mean) / std).flatten(1))",
        "    return nn.functional.normalize(features, dim=-1)",
    ]
