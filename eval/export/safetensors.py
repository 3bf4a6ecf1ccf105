"""`--to safetensors`: everything that was trained in one file, a text tower too; another run can start from it."""

from __future__ import annotations

from pathlib import Path

from eval.encoder import LoadedEncoder
from eval.export.form import save_tensors
from trainer.run.exported import ENCODER_FILE


def write(encoder: LoadedEncoder, folder: Path) -> str:
    """`encoder.safetensors`: towers and heads by the names that checkpoints use."""
    save_tensors(encoder.model.state_dict(), folder / ENCODER_FILE)
    lines = [
        "import json",
        "",
        "import torch",
        "from safetensors.torch import load_file",
        "from torch import nn",
        "from trainer.models.build import rebuild_encoder  # of shardclip",
        "",
        'said = json.loads((FOLDER / "encoder.json").read_text())',
        'encoder = rebuild_encoder(said["model"])',
        f'encoder.load_state_dict(load_file(FOLDER / "{ENCODER_FILE}"))',
        'mean = torch.tensor(said["image"]["mean"]).view(1, 3, 1, 1)',
        'std = torch.tensor(said["image"]["std"]).view(1, 3, 1, 1)',
        "",
        "",
        "@torch.inference_mode()",
        "def encode(pictures):",
        "    return encoder.image_features((pictures - mean) / std)",
    ]
    return "\n".join(lines)
