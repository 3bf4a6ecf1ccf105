"""`--to timm`: a folder that timm's own `create_model("local-dir:...")` loads, and the head beside it."""

from __future__ import annotations

from pathlib import Path

from core.errors import ConfigError
from eval.encoder import LoadedEncoder
from eval.export.form import head_code, save_head
from trainer.models.towers.timm import save_timm_tower
from trainer.models.towers.tower import Tower


def write(encoder: LoadedEncoder, folder: Path) -> str:
    """`config.json` and `model.safetensors`, as timm writes them, and `head.safetensors`."""
    name = encoder.identity["model"]["tower"]
    if not name.startswith("timm:"):
        raise ConfigError(
            f"export --to timm: {encoder.path} has the tower {name} of torchvision. Use --to torchvision."
        )
    tower = Tower(name, encoder.model.image_encoder.tower, encoder.identity["image"]["size"])
    save_timm_tower(tower, encoder.model.normalization, folder)
    save_head(encoder, folder)
    lines = [
        "import timm",
        "import torch",
        "from safetensors.torch import load_file",
        "from torch import nn",
        "",
        'tower = timm.create_model(f"local-dir:{FOLDER}", pretrained=True)',
        *head_code(encoder),
    ]
    return "\n".join(lines)
