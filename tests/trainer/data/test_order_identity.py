"""A run goes on only in its own order; checkpoints of before samplers and fingerprints are understood."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from column_folders import add_column
from shard_sets import make_shard_set

from core.config import Choice
from core.shard_set import ShardSet
from trainer.data.loader import TrainLoader
from trainer.data.order_identity import order_difference, order_identity

UNIFORM, WINDOWS = Choice("uniform"), Choice("uniform", {"window_shards": 2})

SAMPLER_MOVED = "sampler was {'name': 'uniform', 'window_shards': 0}, it is {'name': 'uniform', 'window_shards': 2} now"


@pytest.fixture
def train_set(tmp_path: Path) -> ShardSet:
    return ShardSet.open(make_shard_set(tmp_path / "set", 40))


def identity(train_set: ShardSet, sampler: Choice = UNIFORM, seed: int = 0, batch: int = 8) -> dict[str, Any]:
    loader = TrainLoader(train_set, global_batch_size=batch, sampler=sampler, seed=seed)
    return order_identity(train_set, loader, sampler, seed)


def older(train_set: ShardSet, **changes: Any) -> dict[str, Any]:
    """What a checkpoint noted when a set was known by its recipe, and windows had a key of their own."""
    build = train_set.manifests[0].build_fingerprint
    return {"shards": build, "seed": 0, "global_batch_size": 8, "window_shards": 0, **changes}


def test_the_same_order_goes_on(train_set: ShardSet) -> None:
    assert order_difference(identity(train_set), identity(train_set), train_set) is None


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"seed": 1}, "seed was 0, it is 1 now"),
        ({"batch": 4}, "global_batch_size was 8, it is 4 now"),
        ({"sampler": WINDOWS}, SAMPLER_MOVED),
    ],
)
def test_another_order_is_named(train_set: ShardSet, changes: dict[str, Any], complaint: str) -> None:
    assert order_difference(identity(train_set), identity(train_set, **changes), train_set) == complaint


def test_other_samples_and_another_order_of_the_same_are_named(train_set: ShardSet, tmp_path: Path) -> None:
    other = ShardSet.open(make_shard_set(tmp_path / "other", 40, seed=1))
    assert str(order_difference(identity(train_set), identity(other), other)).startswith("shards was ")
    now = identity(train_set)
    assert str(order_difference(now, {**now, "first_epoch": "ab"}, train_set)).startswith("first_epoch was ")


def test_a_checkpoint_of_before_goes_on(train_set: ShardSet) -> None:
    assert order_difference(older(train_set), identity(train_set), train_set) is None
    assert order_difference(older(train_set, window_shards=2), identity(train_set, WINDOWS), train_set) is None
    written = Choice("uniform", {"window_shards": "2"})  # as a recipe's text gives it
    assert order_difference(older(train_set, window_shards=2), identity(train_set, written), train_set) is None


def test_the_same_sampler_written_otherwise_is_the_same(train_set: ShardSet) -> None:
    for written in ({"window_shards": "0"}, {"window_shards": 0}):
        assert order_difference(identity(train_set), identity(train_set, Choice("uniform", written)), train_set) is None


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (
            {"window_shards": 2},
            "sampler was {'name': 'uniform', 'window_shards': 2}, it is {'name': 'uniform', 'window_shards': 0} now",
        ),
        ({"shards": "another"}, "shards was another, it is "),
        ({"seed": 3}, "seed was 3, it is 0 now"),
    ],
)
def test_a_checkpoint_of_before_with_another_order_is_refused(
    train_set: ShardSet, changes: dict[str, Any], complaint: str
) -> None:
    assert str(order_difference(older(train_set, **changes), identity(train_set), train_set)).startswith(complaint)


@pytest.mark.parametrize("missing", ["shards", "seed", "global_batch_size"])
def test_a_checkpoint_that_lacks_a_field_is_refused_in_one_sentence(train_set: ShardSet, missing: str) -> None:
    was = {name: value for name, value in older(train_set).items() if name != missing}
    difference = order_difference(was, identity(train_set), train_set)
    assert difference is not None and difference.startswith(f"{missing} is not noted in the checkpoint, it is ")


def test_a_hash_of_the_recipe_is_not_taken_for_one_of_samples(train_set: ShardSet) -> None:
    was = {key: value for key, value in older(train_set).items() if key != "window_shards"}
    difference = order_difference({**was, "sampler": "uniform"}, identity(train_set), train_set)
    assert str(difference).startswith("shards was ")


def test_other_labels_are_another_order(tmp_path: Path) -> None:
    sampler, found = Choice("class_balanced", {"num_classes": 2, "num_per_class": 4}), []
    for turn in (0, 1):
        url = make_shard_set(tmp_path / str(turn), 30)
        add_column(url, "labels", ((np.arange(30) + turn) // 2 % 3).astype("<i4"), classes=("a", "b", "c"))
        found.append(identity(ShardSet.open(url), sampler))
    was, now = found
    assert was["shards"] == now["shards"] and was["first_epoch"] != now["first_epoch"]


def test_the_noted_hash_is_of_the_first_epochs_order(train_set: ShardSet) -> None:
    order = TrainLoader(train_set, global_batch_size=8, sampler=WINDOWS, seed=3).order(0)
    assert identity(train_set, WINDOWS, seed=3)["first_epoch"] == xxhash.xxh3_64_hexdigest(
        order.astype("<i8").tobytes()
    )
