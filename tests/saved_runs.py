"""Run folders with one checkpoint of an untrained encoder, for what reads them; and checkpoints changed in place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from training_runs import last_checkpoint, register_small_tower

from core.config import Choice
from core.manifest import TextEncoderSpec
from core.parts import build
from trainer.checkpoint.files import MANIFEST, manifest_bytes, read_manifest
from trainer.checkpoint.folder import STATE, STORED_SIZE, save_checkpoint
from trainer.checkpoint.tensor_tree import dump_json, parse_json
from trainer.models.build import build_encoder
from trainer.models.config import ModelConfig
from trainer.models.texts.text import LiveText
from trainer.objectives import OBJECTIVES
from trainer.objectives.objective import Objective

_TEXT_WIDTH = 8


def _settle(tower: nn.Module, size: int) -> None:
    """Batch norms with the statistics of some pictures: with none of their own, all pictures would look alike."""
    for module in tower.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        tower.train()(torch.rand(16, 3, 4, 4).repeat_interleave(-(-size // 4), 2).repeat_interleave(-(-size // 4), 3))
    tower.eval()


def change_state(run_dir: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the state in the last checkpoint in place: as another version might have written it."""
    checkpoint = last_checkpoint(run_dir)
    path = checkpoint.path
    manifest = read_manifest(path)
    files = {name: (path / name).read_bytes() for name in manifest.files}
    state = parse_json(files[STATE])
    change(state)
    files[STATE] = dump_json(state)
    (path / STATE).write_bytes(files[STATE])
    (path / MANIFEST).write_bytes(
        manifest_bytes({name: [data] for name, data in files.items()}, checkpoint.step, manifest.is_best)
    )


def write_run(
    folder: Path,
    *,
    tower: str = "small",
    size: int = 32,
    stored: int | None = None,
    fit: str = "crop",
    text_encoder: TextEncoderSpec | None = None,
    text: LiveText | None = None,
    objective: str = "infonce",
    config: dict[str, Any] | None = None,
) -> Path:
    """A run folder whose encoder has seeded random weights.

    Args:
        size, stored: pixels of the pictures that the tower sees, and of the training set's; None: not said.
        text_encoder: whose vectors it was "trained" against; None: of 8 random dimensions.
        text: a tower of texts that was "trained" with the pictures, 8 wide; its head is random too.
    """
    register_small_tower()
    part: Objective = build(OBJECTIVES, Choice(objective), "objective")
    spec = (text_encoder or TextEncoderSpec("random", "0", 8, "0" * 64)) if part.needs_text and not text else None
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        settings = ModelConfig(tower=tower, hidden_dim=16)
        trained = text.build(_TEXT_WIDTH) if text else None
        width = _TEXT_WIDTH if text else spec.embed_dim if spec else None
        model = build_encoder(settings, part, width, size, trained)
        _settle(model.image_encoder.tower, size)
    mean, std = model.normalization
    identity = {
        "model": model.describe(),
        "objective": objective,
        "text_encoder": asdict(spec) if spec else None,
        "image": {"size": size, "fit": fit, "mean": list(mean), "std": list(std)},
        "config": {"global_batch_size": 4, "objective": objective, **(config or {})},
    }
    save_checkpoint(
        folder / "checkpoints",
        parts={
            "encoder": model.state_dict(),
            "objective": {name: torch.tensor(value) for name, value in part.parameters().items()},
        },
        optimizer_state={},
        state={"step": 3},
        identity=identity if stored is None else {**identity, STORED_SIZE: stored},
        keep_last=1,
        is_best=True,
    )
    return folder
