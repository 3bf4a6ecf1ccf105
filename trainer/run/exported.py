"""What `shardclip export --to safetensors` says of its `encoder.safetensors`: a run can start from that file alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import CheckpointError

ENCODER_FILE, FACTS_FILE = "encoder.safetensors", "encoder.json"


@dataclass(frozen=True)
class Facts:
    """Of an exported encoder.

    Attributes:
        identity: `model` (tower, mean, std, ...) and `text_encoder`, as a checkpoint's identity has them.
        objective: its name in the table.
        parameters: its learned scalars by name, as they are trained; empty in exports of older versions.
    """

    identity: Mapping[str, Any]
    objective: str
    parameters: Mapping[str, float]


def read_facts(weights: Path) -> Facts | None:
    """The facts beside an exported encoder's file; None of any other file.

    Raises:
        CheckpointError: they are damaged.
    """
    path = weights.with_name(FACTS_FILE)
    if weights.name != ENCODER_FILE or not path.is_file():
        return None
    try:
        said = json.loads(path.read_text("utf-8"))
        model = {key: said["model"][key] for key in ("tower", "mean", "std")}
        identity = {"model": model, "text_encoder": said["text_encoder"]}
        return Facts(identity, said["objective"], said.get("parameters", {}))
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"start_from: {path} beside {weights.name} is damaged ({type(error).__name__}: {error}). Export again."
        ) from error
