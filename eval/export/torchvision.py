"""`--to torchvision`: the tower's state dict as torchvision's own model takes it, and the head beside it."""

from __future__ import annotations

from pathlib import Path

from core.errors import ConfigError
from eval.encoder import LoadedEncoder
from eval.export.form import head_code, save_head, save_tensors
from trainer.models.towers.torchvision import library_call

TOWER = "tower.safetensors"


def write(encoder: LoadedEncoder, folder: Path) -> str:
    """`tower.safetensors` and `head.safetensors`."""
    family, _, name = encoder.identity["model"]["tower"].rpartition(":")
    if family not in ("", "torchvision"):
        raise ConfigError(f"export --to torchvision: {encoder.path} has a tower of {family}. Use --to {family}.")
    call, last_layer = library_call(name, encoder.identity["image"]["size"])
    save_tensors(encoder.model.image_encoder.tower.state_dict(), folder / TOWER)
    save_head(encoder, folder)
    parent, _, child = last_layer.rpartition(".")
    lines = [
        "import torch",
        "import torchvision",
        "from safetensors.torch import load_file",
        "from torch import nn",
        "",
        f"tower = {call}",
        f'setattr(tower.get_submodule("{parent}"), "{child}", nn.Identity())  # the classifier',
        f'tower.load_state_dict(load_file(FOLDER / "{TOWER}"))',
        *head_code(encoder),
    ]
    return "\n".join(lines)
