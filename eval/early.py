"""What of an evaluation can be known to fail without torch: said within a second, before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from core.errors import ConfigError, DamagedError, ShardclipError, StorageError
from core.places import EVALUATION, expect_folder_of_ours, expect_no_common_folder
from core.shard_set import ShardSet
from core.storage import is_local
from eval.captions_file import read_captions
from eval.config import EvalConfig
from eval.evaluations import chosen
from eval.evaluations.evaluation import UNTRAINED
from trainer.checkpoint.folder import resolve_checkpoint
from trainer.early import expect_bare_tower
from trainer.models.config import BareTower
from trainer.run.folder import RUN
from trainer.trackers.metrics_csv import METRICS

RANKS, RESULTS = "ranks.safetensors", "results.json"
OF_EACH, FEATURES = "of_each.safetensors", "features.safetensors"
MARK = EVALUATION.marks[0]  # the resolved recipe, which lies there before anything else does


def expect_measurable(config: EvalConfig) -> None:
    """Raise the first mistake that can be known.

    Raises:
        ShardclipError: no checkpoint, set or file is where the recipe says; or `out` holds other things.
    """
    if config.checkpoint is not None:
        expect_place(config, resolve_checkpoint(config.checkpoint).parent.parent)
    else:
        assert config.model is not None, "one of them is given"
        expect_bare_tower(config.model)
        expect_place(config, None)
    for url in (*config.shards, *config.labelled_shards, *config.gallery):
        if is_local(url):
            ShardSet.open(url, config.cache_dir, text="")  # alone: which captions they share, the checkpoint decides
    if all(is_local(url) for url in config.shards):
        _expect_captions(config)
    _expect_other_weights(config)
    if config.baseline is not None and not (config.baseline / RANKS).exists():
        raise no_baseline(config.baseline)


def _expect_other_weights(config: EvalConfig) -> None:
    """Raise where a run that an evaluation compares with has no checkpoint."""
    for name, evaluation in chosen(config.evaluations).items():
        for weights in evaluation.other_weights():
            try:
                if isinstance(weights, BareTower):
                    expect_bare_tower(weights)
                elif weights != UNTRAINED:
                    resolve_checkpoint(Path(weights))
            except ShardclipError as error:
                raise type(error)(f"evaluations: '{name}' of {error}") from error


def _expect_captions(config: EvalConfig) -> None:
    """Raise where a captions file does not fit the shards, or a protocol their own captions."""
    sets = [ShardSet.open(url, config.cache_dir, text="") for url in config.shards]
    if config.captions is not None:
        manifests = tuple(manifest for own in sets for manifest in own.manifests)
        read_captions(config.captions, ShardSet(config.shards, manifests, config.cache_dir, verified=True))
    elif strict := config.strict_protocols():
        of_classes = [url for url, own in zip(config.shards, sets, strict=True) if own.class_captions]
        if of_classes:
            raise ConfigError(
                f"protocols: '{strict[0]}' counts own captions alone, but those of {of_classes[0]} were made from "
                "class names. Use protocols: full."
            )


def expect_place(config: EvalConfig, run_dir: Path | None) -> None:
    """Raise ConfigError where results must not be written; `run_dir` takes them where the recipe names no folder."""
    expect_folder_of_ours(place_of(config, run_dir), "out", EVALUATION)
    if config.cache_dir is not None:
        expect_no_common_folder(config.cache_dir, "cache_dir")


def place_of(config: EvalConfig, run_dir: Path | None) -> Path:
    """The folder that results go to."""
    place = config.out or run_dir
    assert place is not None, "a recipe without a checkpoint names out"
    return place


def no_baseline(folder: Path) -> ConfigError:
    """The sentence for a baseline that is none."""
    return ConfigError(f"baseline: {folder / RANKS} is missing. Name the folder of an earlier `shardclip eval`.")


def read_json(path: Path) -> dict[str, Any]:
    """What a JSON file of an evaluation or a run holds; empty where there is none.

    Raises:
        DamagedError: it is not whole.
    """
    if not path.exists():
        return {}
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except ValueError:
        raise DamagedError(f"{path}: no whole JSON. Run `shardclip eval` again, or delete the file.") from None
    return found


def expect_measured(folder: Path) -> None:
    """Raise StorageError where there is nothing to report on."""
    if not any((folder / name).exists() for name in (RESULTS, METRICS, RUN)):
        raise StorageError(f"{folder}: neither {RESULTS} nor a run is there. Run `shardclip eval RECIPE` first.")
