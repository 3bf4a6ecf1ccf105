"""The weights of a checkpoint without its optimizer: for evaluation, export, and runs that start from them.

Checkpoints of older versions hold the encoder and its temperature in one file, and their recipe says `loss`; they
are read as what they would be today.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from core.errors import CheckpointError
from core.storage import sha256_of
from trainer.checkpoint.files import REMEDY, CheckpointManifest, decoded, read_manifest, read_verified
from trainer.checkpoint.folder import EMA, ENCODER, IDENTITY, OBJECTIVE, OLDER_MODEL, part_file, read_identity
from trainer.checkpoint.tensor_tree import decode_tensors

_SCALE = "logit_scale"  # the only learned scalar of older versions
_ENCODER_PREFIX, _LEARNED_PREFIX = "encoder.", "learned."  # in the averages: `TrainedModel`'s names


@dataclass(frozen=True)
class Weights:
    """What was trained: the averages where there are any.

    Attributes:
        encoder: towers and heads, as `Encoder.state_dict` names them.
        learned: the objective's scalars by name.
        identity: what the weights are.
        fingerprint: of the file they were read from: features of equal fingerprints belong together.
    """

    path: Path
    encoder: dict[str, Tensor]
    learned: dict[str, Tensor]
    identity: dict[str, Any]
    fingerprint: str


def read_weights(path: Path) -> Weights:
    """The weights of a checkpoint folder, of any version; only the files that hold them are read.

    Raises:
        CheckpointError: a file is missing, cut short or altered; names it.
    """
    manifest = read_manifest(path)
    identity = translated(read_identity(path), path)
    has_average = part_file(EMA) in manifest.files
    if OLDER_MODEL in manifest.files:
        name = part_file(EMA) if has_average else OLDER_MODEL
        tensors = _read(path, name, manifest)
        learned = {_SCALE: tensors.pop(_SCALE)}
        return Weights(path, tensors, learned, identity, sha256_of(path / name))
    if has_average:
        tensors = _read(path, part_file(EMA), manifest)
        encoder, learned = (_under(prefix, tensors) for prefix in (_ENCODER_PREFIX, _LEARNED_PREFIX))
        return Weights(path, encoder, learned, identity, sha256_of(path / part_file(EMA)))
    encoder = _read(path, part_file(ENCODER), manifest)
    objective = _read(path, part_file(OBJECTIVE), manifest) if part_file(OBJECTIVE) in manifest.files else {}
    learned = {name: tensor for name, tensor in objective.items() if not tensor.ndim}  # the rest is its state
    return Weights(path, encoder, learned, identity, sha256_of(path / part_file(ENCODER)))


def translated(identity: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """An identity of any version in today's words.

    Raises:
        CheckpointError: it says nothing of a model.
    """
    if "model" not in identity:
        raise CheckpointError(f"{path / IDENTITY}: has no 'model', so it was written by another version. {REMEDY}")
    config = dict(identity.get("config", {}))
    if "loss" in config:
        config["objective"] = config.pop("loss")
    model = {"keeps_head": True, "text": None, **identity["model"]}
    return {**identity, "model": model, "config": config}


def _read(path: Path, name: str, manifest: CheckpointManifest) -> dict[str, Tensor]:
    return decoded(path / name, decode_tensors, read_verified(path, name, manifest.entry(path, name)))


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
