"""Which command a recipe is for, told by its keys: one given to another command is recognised, not called mistyped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RecipeKind:
    """A kind of YAML file.

    Attributes:
        what: for people, with its article.
        keys: that no other kind has.
        command: what it is for; `{}` stands for the file.
    """

    what: str
    keys: frozenset[str]
    command: str


KINDS: dict[str, RecipeKind] = {
    "BuildConfig": RecipeKind(
        "a build recipe",
        frozenset({"source", "samples_per_shard", "split", "workers"}),
        "shardclip build {}",
    ),
    "TrainConfig": RecipeKind(
        "a training recipe", frozenset({"run_dir", "data", "global_batch_size", "optim"}), "shardclip train {}"
    ),
    "EvalConfig": RecipeKind(
        "an evaluation recipe",
        frozenset({"checkpoint", "shards", "protocols", "queries", "gallery", "labelled_shards"}),
        "shardclip eval {}",
    ),
    "accelerate": RecipeKind(
        "a file of `accelerate config`",
        frozenset({"compute_environment", "distributed_type", "num_processes", "mixed_precision"}),
        "shardclip train RECIPE --accelerate-config {}",
    ),
}


def other_kind(mapping: Mapping[str, Any], wanted: str) -> RecipeKind | None:
    """The kind that a file is of, where it is not `wanted` (a dataclass's name): it has none of that one's keys."""
    if wanted not in KINDS or KINDS[wanted].keys & set(mapping):
        return None
    counts = {name: len(kind.keys & set(mapping)) for name, kind in KINDS.items()}
    most = max(counts, key=lambda name: counts[name])
    return KINDS[most] if counts[most] > 1 else None
