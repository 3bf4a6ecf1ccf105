"""What the order of a run's samples is computed from: kept in checkpoints, compared when a run goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import xxhash

from core import parts
from core.config import Choice, to_mapping
from core.shard_set import ShardSet
from trainer.data.loader import TrainLoader
from trainer.samplers import SAMPLERS

DEFAULTS: dict[str, Any] = {"first_epoch": None}  # of checkpoints that lack the field; None: not compared


def order_identity(train_set: ShardSet, loader: TrainLoader, sampler: Choice, seed: int) -> dict[str, Any]:
    """All that the order is computed from; `first_epoch` is a hash of the order itself, columns included."""
    return {
        "shards": train_set.fingerprint,
        "seed": seed,
        "global_batch_size": loader.global_batch_size,
        "sampler": to_mapping(parts.settings(SAMPLERS, sampler, "data.sampler", given=["epoch"])),
        "first_epoch": xxhash.xxh3_64_hexdigest(loader.order(0).tobytes()),
    }


def order_difference(was: Mapping[str, Any], now: Mapping[str, Any], train_set: ShardSet) -> str | None:
    """`seed was 0, it is 1 now` for the first difference; None where the samples come in the same order."""
    was = _of_today(was, train_set)
    for key, value in now.items():
        if was.get(key) is not None and was[key] != value:
            return f"{key} was {was[key]}, it is {value} now"
        if key not in was:
            return f"{key} is not noted in the checkpoint, it is {value} now"
    return None


def _of_today(was: Mapping[str, Any], train_set: ShardSet) -> dict[str, Any]:
    """An older checkpoint's identity in today's words: sets were known by their recipe, windows stood by themselves."""
    translated = {**DEFAULTS, **was}
    window = translated.pop("window_shards", 0)
    if "sampler" not in was:
        translated["sampler"] = {"name": "uniform", "window_shards": window}
    builds = "+".join(manifest.build_fingerprint for manifest in train_set.manifests)
    if "sampler" not in was and was.get("shards") == builds:
        translated["shards"] = train_set.fingerprint
    return translated
