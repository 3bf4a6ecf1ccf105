"""Checkpoints as versions before named parts wrote them: encoder and temperature in one file, a recipe with `loss`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from core.storage import publish_folder
from trainer.checkpoint.files import MANIFEST, manifest_bytes, write_files
from trainer.checkpoint.tensor_tree import Pieces, dump_json, encode_tensors, encode_tree
from trainer.models.trained import TrainedModel


def save_as_before(
    run_dir: Path,
    model: TrainedModel,
    *,
    averaged: TrainedModel | None = None,
    identity: dict[str, Any] | None = None,
    step: int = 1,
) -> Path:
    """`run_dir/checkpoints/step-...`; returns its path.

    Args:
        identity: its values of today, as a checkpoint's `model.json` has them.
    """
    said = {**(identity or {}), "model": {**model.encoder.describe(), **(identity or {}).get("model", {})}}
    for name in ("keeps_head", "text"):
        said["model"].pop(name, None)
    config = dict(said.get("config", {}))
    config["loss"] = config.pop("objective", {"name": "infonce"})
    said = {name: value for name, value in {**said, "config": config}.items() if name != "objective"}
    files: dict[str, Pieces] = {
        "model.safetensors": encode_tensors(_in_one(model)),
        "optimizer.safetensors": encode_tree({"state": {}, "param_groups": []}),
        "state.json": [dump_json({"step": step, "epoch": 0})],
        "model.json": [dump_json(said)],
    }
    if averaged is not None:
        files["ema.safetensors"] = encode_tensors(_in_one(averaged))
    files[MANIFEST] = [manifest_bytes(files, step, False)]
    target = run_dir / "checkpoints" / f"step-{step:08d}"
    publish_folder(lambda partial: write_files(partial, files), target)
    return target


def _in_one(model: TrainedModel) -> dict[str, Tensor]:
    return {**model.encoder.state_dict(), "logit_scale": model.learned["logit_scale"]}
