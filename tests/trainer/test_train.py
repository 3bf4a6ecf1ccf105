"""The whole loop on tiny shards, in real gloo processes: exact resume, any number of ranks, errors before step 1."""

from __future__ import annotations

import csv
import os
import signal
from pathlib import Path
from typing import Any

import gloo
import pytest
from shard_sets import damage, make_shard_set

from core.config import from_mapping
from core.errors import ShardclipError
from trainer.checkpoint import latest_checkpoint, load_checkpoint
from trainer.config import TrainConfig
from trainer.run_folder import read_events
from trainer.signals import REQUEUE_EXIT_CODE

NUM_SAMPLES, STEPS_PER_EPOCH = 50, 6


def recipe(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    """A recipe of 12 steps on a tower whose batch statistics do not move."""
    for split, count in (("train", NUM_SAMPLES), ("val", 12)):
        if not (tmp_path / split).exists():
            make_shard_set(tmp_path / split, count, size=32, split=split, seed=len(split))
    values: dict[str, Any] = {
        "run_dir": tmp_path / "run",
        "data": {"train": str(tmp_path / "train"), "val": str(tmp_path / "val"), "num_workers": 0},
        "global_batch_size": 8,
        "epochs": 2,
        "model": {"tower": "resnet18", "freeze": "tower", "hidden_dim": 16},
        "optim": {"lr": 0.01, "warmup_steps": 2},
        "log_every": 1,
        "eval_every": 4,
        "checkpoint_every": 4,
        "tracking": {"wandb": "disabled"},
    }
    for key, value in changes.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) else value
    return values


def train_worker(values: dict[str, Any], stop_at: int | None = None, crash_at: int | None = None) -> int | str:
    """Train in this process of a group; a signal or an error can be planted at a validation."""
    from torch import distributed

    os.environ.update(
        RANK=str(distributed.get_rank()),
        LOCAL_RANK=str(distributed.get_rank()),
        WORLD_SIZE=str(distributed.get_world_size()),
        ACCELERATE_USE_CPU="true",
        OMP_NUM_THREADS="1",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT="1",
    )
    from accelerate.state import AcceleratorState

    from eval.validation import make_validation
    from trainer.open_run import open_run
    from trainer.train import train

    AcceleratorState._reset_state(reset_partial_state=True)

    def planted(*arguments: Any) -> Any:
        validate = make_validation(*arguments)

        def measure(model: Any, step: int) -> Any:
            if step == stop_at and distributed.get_rank() == 0:
                os.kill(os.getpid(), signal.SIGTERM)
            if step == crash_at:
                raise ZeroDivisionError("planted")
            return validate(model, step)

        return measure

    try:
        return train(open_run(from_mapping(TrainConfig, values, "test"), planted))
    except ShardclipError as error:
        return str(error)
    except ZeroDivisionError:
        return "crashed"


def losses(run_dir: Path) -> dict[int, str]:
    """Loss of every step, as written."""
    with open(run_dir / "metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row.get("train/loss")]
    steps = [int(row["step"]) for row in rows]
    assert steps == sorted(set(steps)), "a step stands twice"
    return {int(row["step"]): row["train/loss"] for row in rows}


def weights(run_dir: Path) -> dict[str, bytes]:
    path = latest_checkpoint(run_dir / "checkpoints")
    assert path is not None
    return {name: tensor.numpy().tobytes() for name, tensor in load_checkpoint(path).model_state.items()}


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_resumed_run_equals_an_unbroken_one(tmp_path: Path, world_size: int) -> None:
    # Dropout, a trained batch norm, averaged weights and accumulation: all the state there is.
    noisy = {
        "model": {"tower": "resnet18", "freeze": "layer3", "dropout": 0.3},
        "optim": {"ema_decay": 0.9},
        "accumulate": 2,
    }
    whole = recipe(tmp_path, run_dir=tmp_path / "whole", **noisy)
    broken = recipe(tmp_path, run_dir=tmp_path / "broken", **noisy)
    assert gloo.run(world_size, train_worker, whole) == [0] * world_size
    assert gloo.run(world_size, train_worker, broken, 4) == [REQUEUE_EXIT_CODE] * world_size  # SIGTERM at step 4
    assert gloo.run(world_size, train_worker, broken, None, 8) == ["crashed"] * world_size  # between checkpoints
    assert gloo.run(world_size, train_worker, broken) == [0] * world_size
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    assert set(losses(tmp_path / "whole")) == set(range(1, 2 * STEPS_PER_EPOCH + 1))
    assert weights(tmp_path / "broken") == weights(tmp_path / "whole")


def test_any_number_of_processes_trains_on_the_same_batches(tmp_path: Path) -> None:
    curves, digests = {}, {}
    for world_size in (1, 2):
        run_dir = tmp_path / f"run-{world_size}"
        assert gloo.run(world_size, train_worker, recipe(tmp_path, run_dir=run_dir)) == [0] * world_size
        curves[world_size] = {step: float(loss) for step, loss in losses(run_dir).items()}
        epochs = [event for event in read_events(run_dir) if event["event"] == "epoch covered"]
        digests[world_size] = [epoch["order_digest"] for epoch in epochs]
        assert [epoch["missed"] + epoch["repeated"] for epoch in epochs] == [0, 0]
        assert [epoch["dropped"] for epoch in epochs] == [NUM_SAMPLES % 8] * 2
    assert digests[1] == digests[2]
    for step, loss in curves[1].items():
        assert curves[2][step] == pytest.approx(loss, abs=1e-5)


def test_a_stop_leaves_a_checkpoint_of_that_step(tmp_path: Path) -> None:
    assert gloo.run(2, train_worker, recipe(tmp_path, checkpoint_every=100), 4) == [REQUEUE_EXIT_CODE] * 2
    path = latest_checkpoint(tmp_path / "run" / "checkpoints")
    assert path is not None and load_checkpoint(path).step == max(losses(tmp_path / "run"))


def test_a_damaged_sample_is_replaced_counted_and_named(tmp_path: Path) -> None:
    values = recipe(tmp_path, epochs=1, data={"max_damaged": 1})
    damage(str(tmp_path / "train"), 23)
    assert gloo.run(1, train_worker, values) == [0]
    events = read_events(tmp_path / "run")
    named = [event for event in events if event["event"] == "damaged sample"]
    assert len(named) == 1 and "train-00002.tar" in named[0]["description"]
    covered = next(event for event in events if event["event"] == "epoch covered")
    assert covered["substituted"] == 1 and covered["missed"] == 0
    (sentence,) = gloo.run(1, train_worker, recipe(tmp_path, run_dir=tmp_path / "strict", epochs=1))
    assert "train-00002.tar: sample 000000023" in str(sentence) and "max_damaged is 0" in str(sentence)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"global_batch_size": 64}, "64"),
        ({"accumulate": 3}, "accumulate is 3: a process has 8 of the 8 pairs"),
        ({"optim": {"warmup_steps": 40}}, "optim.warmup_steps is 40, but the run has 12 steps"),
        ({"model": {"tower": "resnet19"}}, "resnet1"),
        ({"model": {"tower": "resnet18", "weights": "nowhere/weights.pth", "normalize": "imagenet"}}, "nowhere"),
        ({"data": {"train": "nowhere"}}, "nowhere: no manifest.json"),
    ],
)
def test_mistakes_end_before_step_1(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    (said,) = gloo.run(1, train_worker, recipe(tmp_path, **changes))
    assert isinstance(said, str) and sentence in said
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_a_set_of_another_encoder_is_refused(tmp_path: Path) -> None:
    make_shard_set(tmp_path / "wide", 12, embed_dim=16)
    (said,) = gloo.run(1, train_worker, recipe(tmp_path, data={"val": str(tmp_path / "wide")}))
    assert "captions were embedded by random (0, 16 wide" in str(said) and "those of training by" in str(said)


def test_what_would_change_the_order_or_the_model_is_refused_on_resume(tmp_path: Path) -> None:
    assert gloo.run(1, train_worker, recipe(tmp_path), 4) == [REQUEUE_EXIT_CODE]
    (seed,) = gloo.run(1, train_worker, recipe(tmp_path, seed=1))
    assert "seed was 0, it is 1 now: the samples would come in another order" in str(seed)
    (model,) = gloo.run(1, train_worker, recipe(tmp_path, model={"hidden_dim": 32}))
    assert "checkpoint of another model" in str(model) and "hidden_dim is 16, 32 is needed" in str(model)
    (other,) = gloo.run(1, train_worker, recipe(tmp_path, resume="no"))
    assert "resume=auto" in str(other)
    (frozen,) = gloo.run(1, train_worker, recipe(tmp_path, model={"freeze": "layer3"}))
    assert "was trained with other parameters than this recipe trains" in str(frozen)


def test_changed_optimizer_settings_count_on_resume(tmp_path: Path) -> None:
    assert gloo.run(1, train_worker, recipe(tmp_path), 4) == [REQUEUE_EXIT_CODE]
    assert gloo.run(1, train_worker, recipe(tmp_path, optim={"weight_decay": 0.5, "betas": [0.8, 0.9]})) == [0]
    path = latest_checkpoint(tmp_path / "run" / "checkpoints")
    assert path is not None
    groups = load_checkpoint(path).optimizer_state["param_groups"]
    assert {group["weight_decay"] for group in groups} == {0.5, 0.0}
    assert all(tuple(group["betas"]) == (0.8, 0.9) for group in groups)
    continued = [event for event in read_events(tmp_path / "run") if event["event"] == "continued"]
    assert any("weight_decay" in change for change in continued[0]["config_changes"])


def test_a_failed_run_says_so(tmp_path: Path) -> None:
    values = recipe(tmp_path, epochs=1)
    damage(str(tmp_path / "train"), 23)
    (said,) = gloo.run(1, train_worker, values)
    assert "damaged" in str(said)
    assert '"state": "failed"' in (tmp_path / "run" / "run.json").read_text()
    assert any(event["event"] == "failed" for event in read_events(tmp_path / "run"))
    assert not (tmp_path / "run" / ".lock").exists()
