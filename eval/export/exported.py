"""An exported encoder again, from its folder alone: what `--to safetensors` and `--to mteb` write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from core.config import Choice
from core.errors import CheckpointError
from core.parts import build
from eval.encoder import LoadedEncoder
from trainer.checkpoint.folder import STORED_SIZE
from trainer.models.build import rebuild_encoder
from trainer.models.towers.weights import read_state_dict
from trainer.objectives import OBJECTIVES
from trainer.objectives.objective import Objective
from trainer.pictures.augment import Normalize
from trainer.run.exported import ENCODER_FILE, FACTS_FILE


def is_exported(folder: Path) -> bool:
    """Whether `shardclip export` has written this folder, in any form."""
    return (folder / FACTS_FILE).is_file()


def load_exported(folder: Path, device: torch.device) -> LoadedEncoder:
    """The encoder that was exported into the folder, on the device; to the bit that of its checkpoint.

    Raises:
        CheckpointError: its form is another library's, or `encoder.json` is damaged.
        WeightsError: the weights are damaged, or a text tower's own files are not on this machine.
    """
    try:
        said = json.loads((folder / FACTS_FILE).read_text("utf-8"))
        identity, objective_name = _identity(said), said["objective"]
        scalars = {name: torch.tensor(float(value)) for name, value in said["learned"].items()}
        form, fingerprint = said["form"], said["fingerprint"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{folder / FACTS_FILE} is damaged ({type(error).__name__}: {error}). Export again."
        ) from error
    if not (folder / ENCODER_FILE).is_file():
        raise CheckpointError(
            f"{folder}: was exported to {form}, and its README.md says how that is loaded. Name the run instead, or "
            "what `shardclip export` has written with --to safetensors or --to mteb."
        )
    model = rebuild_encoder(identity["model"])
    state = read_state_dict(folder / ENCODER_FILE, "an exported encoder")
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(
            f"{folder / ENCODER_FILE}: its weights do not fit the model that {FACTS_FILE} names: "
            f"{str(error).splitlines()[-1].strip()}"
        ) from None
    image = identity["image"]
    normalize = Normalize(image["size"], image["mean"], image["std"])
    objective: Objective = build(OBJECTIVES, Choice(objective_name), "objective")
    return LoadedEncoder(
        known_as=str(folder),
        run_dir=None,
        model=model.to(device).eval(),
        objective=objective,
        scalars=scalars,
        normalize=normalize,
        identity=identity,
        fingerprint=fingerprint,
        path=folder,
    )


def _identity(said: dict[str, Any]) -> dict[str, Any]:
    """What the checkpoint said of itself, as far as encoding needs it."""
    image = said["image"]
    return {
        "model": said["model"],
        "text_encoder": said["text_encoder"],
        "image": {name: image[name] for name in ("size", "fit", "mean", "std")},
        STORED_SIZE: image["stored_size"],
        "config": {"objective": said["objective"]},
    }
