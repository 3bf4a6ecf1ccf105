"""Two evaluations of the same shards: ranks kept on disk, and paired intervals of what one gains over the other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from core.errors import DamagedError, DataError
from core.storage import publish_bytes
from eval.early import RANKS, no_baseline
from eval.metrics import FeatureSet, Ranks, paired_bootstrap
from trainer.telemetry.names import IMAGE_TO_TEXT, RECALL_KS, TEXT_TO_IMAGE

# In the file's metadata: "", or what makes further answers right; "", or the file that captions are from.
_RIGHT, _CAPTIONS = "right_answers", "captions"


def save_ranks(ranks: Ranks, features: FeatureSet, path: Path, captions_from: str = "") -> None:
    """Publish the rank of every query, and what was right for what.

    Args:
        captions_from: the file that captions are from; "": the set itself.
    """
    tensors = {
        IMAGE_TO_TEXT: ranks.image_to_text,
        TEXT_TO_IMAGE: ranks.text_to_image,
        "image_of_text": features.image_of_text,
    }
    publish_bytes(save(tensors, {_RIGHT: features.right.kind, _CAPTIONS: captions_from}), path)


def save_of_each(of_each: Mapping[str, np.ndarray], path: Path) -> None:
    """Publish what was measured of each query, by figure: `Measured.of_each`."""
    publish_bytes(save({figure: np.ascontiguousarray(values) for figure, values in of_each.items()}), path)


def read_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """What lies in a file of an evaluation, and its metadata.

    Raises:
        DamagedError: it is no whole safetensors file.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
            return tensors, file.metadata() or {}
    except (SafetensorError, UnicodeDecodeError) as error:
        raise DamagedError(f"{path}: not whole ({error}). Run `shardclip eval` again.") from None


def gains_over(baseline: Path, ranks: Ranks, features: FeatureSet, captions_from: str = "") -> dict[str, Any]:
    """The difference of each recall to that of an earlier evaluation, with its interval.

    Raises:
        ConfigError: there is no evaluation in the folder.
        DataError: it is of other shards or captions, or by another protocol.
    """
    path = baseline / RANKS
    if not path.exists():
        raise no_baseline(baseline)
    before, metadata = read_tensors(path)
    kind, captions = metadata.get(_RIGHT, ""), metadata.get(_CAPTIONS, "")
    if kind != features.right.kind:
        raise DataError(
            f"baseline: {path} counts right answers by {kind or 'own captions'}, this evaluation by "
            f"{features.right.kind or 'own captions'}. Evaluate both runs alike."
        )
    if captions != captions_from:
        raise DataError(
            f"baseline: {path} has captions of {captions or 'the shards'}, this evaluation of "
            f"{captions_from or 'the shards'}. Evaluate both runs with the same captions."
        )
    if not np.array_equal(before["image_of_text"], features.image_of_text):
        raise DataError(f"baseline: {path} is of other shards. Evaluate both runs on the same shards.")
    gains: dict[str, Any] = {"folder": str(baseline)}
    for direction, groups in ((IMAGE_TO_TEXT, None), (TEXT_TO_IMAGE, features.text_groups)):
        now = getattr(ranks, direction)
        pairs = {k: paired_bootstrap(before[direction], now, k, groups) for k in RECALL_KS}
        gains[direction] = {str(k): vars(interval) for k, interval in pairs.items()}
    return gains
