"""Balanced, topical and mixed epochs: stopped, killed and moved to other numbers of processes, the same rows."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import gloo
import numpy as np
import pytest
from column_folders import add_column
from shard_sets import make_shard_set
from training_runs import (
    NUM_SAMPLES,
    SMALL_TOWER,
    STEPS_PER_EPOCH,
    losses,
    recipe,
    record_samples,
    recorded_steps,
    rows_of,
    train_worker,
)

from core.config import Choice, from_mapping
from core.shard_set import ShardSet
from trainer.config import DataConfig
from trainer.data.loader import TrainLoader
from trainer.guard.signals import REQUEUE_EXIT_CODE
from trainer.run.folder import read_events
from trainer.samplers.epoch import draws_of

SAMPLERS = {
    "class_balanced": {"num_classes": 4, "num_per_class": 2},
    "topical": {"p_topical": 0.5, "column": "topics"},
    "mix": {"weights": [1.0, 3.0]},
}


def sampled_recipe(tmp_path: Path, name: str, sampler: str) -> dict[str, Any]:
    """Two epochs; labels and topics of the training set, and a second, small set for `mix`."""
    data: dict[str, Any] = {"sampler": {"name": sampler, **SAMPLERS[sampler]}, "num_workers": 1}
    values = recipe(tmp_path, run_dir=tmp_path / name, model=SMALL_TOWER, data=data)
    url = values["data"]["train"]
    if not (tmp_path / "train" / "columns").exists():
        add_column(url, "labels", (np.arange(NUM_SAMPLES) % 7).astype("<i4"), classes=tuple("abcdefg"))
        add_column(url, "topics", (np.arange(NUM_SAMPLES) % 3).astype("<i4"), num_topics=3)
    if sampler == "mix":
        second = str(tmp_path / "second")
        if not Path(second).exists():
            make_shard_set(Path(second), 4, seed=77)  # a few samples with most of the draws: many repeats
        values["data"]["train"] = [url, second]
    return values


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("world_sizes", [(1, 2, 1), pytest.param((2, 4, 2), marks=pytest.mark.slow)])
def test_a_run_that_is_killed_and_moved_trains_on_the_same_rows(
    tmp_path: Path, sampler: str, world_sizes: tuple[int, int, int]
) -> None:
    alone, moving = (sampled_recipe(tmp_path, name, sampler) for name in ("alone", "moving"))
    record_alone, record_moving = (
        partial(record_samples, tmp_path / f"rows-{n}", rows_of) for n in ("alone", "moving")
    )
    assert gloo.run(1, train_worker, alone, None, None, record_alone) == [0]
    first, second, third = world_sizes
    assert gloo.run(first, train_worker, moving, 4, None, record_moving) == [REQUEUE_EXIT_CODE] * first
    assert gloo.run(second, train_worker, moving, 8, None, record_moving) == [REQUEUE_EXIT_CODE] * second
    assert gloo.run(third, train_worker, moving, None, None, record_moving) == [0] * third

    rows = recorded_steps(tmp_path / "rows-moving")
    assert rows == recorded_steps(tmp_path / "rows-alone")  # samples, draws, captions, pixels
    declared = declared_rows(alone)
    assert {place: [row[:2] for row in own] for place, own in rows.items()} == declared
    ours, theirs = losses(tmp_path / "moving"), losses(tmp_path / "alone")
    assert set(ours) == set(range(1, 2 * len(declared) // 2 + 1))
    assert max(abs(float(ours[step]) - float(theirs[step])) for step in ours) <= 1e-5
    covered = [event for event in read_events(tmp_path / "moving") if event["event"] == "epoch covered"]
    assert [(event["missed"], event["repeated"]) for event in covered] == [(0, 0)] * 2


def declared_rows(values: dict[str, Any]) -> dict[tuple[int, int], list[list[int]]]:
    """Sample and draw of each position, from the sampler alone."""
    data = from_mapping(DataConfig, values["data"], "test")
    shards = ShardSet.open(data.train)
    loader = TrainLoader(shards, global_batch_size=8, sampler=data.sampler)
    declared = {}
    for epoch in range(2):
        order = loader.order(epoch)
        rows = np.stack([order, draws_of(order, len(shards))], axis=1).reshape(loader.steps_per_epoch, 8, 2)
        declared |= {(epoch, step): batch.tolist() for step, batch in enumerate(rows)}
    return declared


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            {"sampler": {"name": "uniform", "window_shards": 2}},
            "sampler was {'name': 'uniform', 'window_shards': 0}, it is {'name': 'uniform', 'window_shards': 2}",
        ),
        (
            {"sampler": {"name": "class_balanced", "num_classes": 4, "num_per_class": 2}},
            "sampler was {'name': 'uniform'",
        ),
    ],
)
def test_a_run_does_not_go_on_in_another_order(tmp_path: Path, change: dict[str, Any], complaint: str) -> None:
    values = sampled_recipe(tmp_path, "run", "class_balanced")
    values["data"]["sampler"] = "uniform"
    assert gloo.run(1, train_worker, values, 4) == [REQUEUE_EXIT_CODE]
    (said,) = gloo.run(1, train_worker, {**values, "data": {**values["data"], **change}})
    assert complaint in said and "the samples would come in another order" in said


def test_a_run_does_not_go_on_with_other_labels(tmp_path: Path) -> None:
    values = sampled_recipe(tmp_path, "run", "class_balanced")
    assert gloo.run(1, train_worker, values, 4) == [REQUEUE_EXIT_CODE]
    for path in (tmp_path / "train" / "columns" / "labels").iterdir():
        path.unlink()
    (tmp_path / "train" / "columns" / "labels").rmdir()
    add_column(values["data"]["train"], "labels", (np.arange(NUM_SAMPLES) % 5).astype("<i4"), classes=tuple("abcde"))
    (said,) = gloo.run(1, train_worker, values)
    assert "first_epoch was" in said and "the samples would come in another order" in said


def test_the_default_sampler_gives_every_sample_once(tmp_path: Path) -> None:
    loader = TrainLoader(
        ShardSet.open(make_shard_set(tmp_path, NUM_SAMPLES)), global_batch_size=8, sampler=Choice("uniform")
    )
    assert loader.steps_per_epoch == STEPS_PER_EPOCH
    assert len(set(loader.order(0).tolist())) == STEPS_PER_EPOCH * 8
