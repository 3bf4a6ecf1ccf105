"""The whole loop on tiny shards, in real gloo processes: stops, damage, errors before step 1; resume: exactness."""

from __future__ import annotations

import os
import pickle
import signal
from functools import partial
from pathlib import Path
from typing import Any

import gloo
import pytest
from saved_runs import change_state
from shard_sets import damage, make_shard_set
from training_runs import last_checkpoint, losses, recipe, train_worker

from core.config import from_mapping
from core.errors import ConfigError
from trainer.config import DataConfig, TrainConfig
from trainer.data.batch import too_many_damaged
from trainer.guard.signals import REQUEUE_EXIT_CODE
from trainer.run.folder import read_events


def test_a_stop_leaves_a_checkpoint_of_that_step(tmp_path: Path) -> None:
    assert gloo.run(2, train_worker, recipe(tmp_path, checkpoint_every=100), 4) == [REQUEUE_EXIT_CODE] * 2
    assert last_checkpoint(tmp_path / "run").step == max(losses(tmp_path / "run"))


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


def say_into(path: Path) -> None:
    from trainer.run import run

    run.console.file = path.open("w", encoding="utf-8")


def test_replaced_samples_are_told_of_at_the_end_of_the_epoch(tmp_path: Path) -> None:
    values = recipe(tmp_path, epochs=1, data={"max_damaged": 1})
    damage(str(tmp_path / "train"), 23)
    said = tmp_path / "said.txt"
    assert gloo.run(1, train_worker, values, None, None, partial(say_into, said)) == [0]
    assert "epoch 1: 1 damaged sample was replaced (events.jsonl names them)" in said.read_text()


def test_damage_may_be_a_share_of_the_samples_as_the_message_says(tmp_path: Path) -> None:
    recipe(tmp_path)  # makes the sets
    damage(str(tmp_path / "train"), 23)
    shared = recipe(tmp_path, run_dir=tmp_path / "share", epochs=1, data={"max_damaged": "0.02"})  # of 50: one
    assert gloo.run(1, train_worker, shared) == [0]
    damage(str(tmp_path / "train"), 31)
    less = recipe(tmp_path, run_dir=tmp_path / "less", epochs=1, data={"max_damaged": "0.02"})
    (sentence,) = gloo.run(1, train_worker, less)
    assert "2 damaged samples, max_damaged is 0.02 of 50 samples = 1" in str(
        sentence
    ) and "data.max_damaged=0.001" in str(sentence)


@pytest.mark.parametrize(
    ("value", "samples"),
    [("3", 3), ("0", 0), ("0.001", 13), ("0.00001", 1), ("0.2", 2469), ("1", 1), ("2.5", None), ("1.0", None)],
)
def test_a_number_of_damaged_samples_or_their_share(tmp_path: Path, value: str, samples: int | None) -> None:
    values = {"run_dir": tmp_path, "data": {"train": "x", "max_damaged": value}, "global_batch_size": 2}
    if samples is None:
        with pytest.raises(ConfigError, match=f"max_damaged is {value}: give a whole number.* or a share below 1"):
            from_mapping(TrainConfig, values, "test")
    else:
        assert from_mapping(TrainConfig, values, "test").data.most_damaged(12_345) == samples


def test_a_share_is_shown_with_what_it_comes_to_in_workers_too() -> None:
    limit = DataConfig(("x",), max_damaged=0.001).most_damaged(999)
    assert limit == 1 and "max_damaged is 0.001 of 999 samples = 1: a, b. " in str(too_many_damaged("ab", limit))
    assert str(pickle.loads(pickle.dumps(limit))) == str(limit)
    assert DataConfig(("x",), max_damaged=0.07).most_damaged(100) == 7  # 0.07 * 100 is 7.000000000000001
    assert "every sample counts: a, b. " in (said := str(too_many_damaged("ab", None))) and "max_damaged is of" in said


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
    groups = last_checkpoint(tmp_path / "run").optimizer_state["param_groups"]
    assert {group["weight_decay"] for group in groups} == {0.5, 0.0}
    assert all(tuple(group["betas"]) == (0.8, 0.9) for group in groups)
    continued = [event for event in read_events(tmp_path / "run") if event["event"] == "continued"]
    assert any("weight_decay" in change for change in continued[0]["config_changes"])


def stop_while_opening() -> None:
    """Plant: SIGTERM comes while the gradients are being proven."""
    import trainer.run.opening

    real = trainer.run.opening.prove_gradients

    def prove(*arguments: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments, **options)

    trainer.run.opening.prove_gradients = prove


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_run_that_is_stopped_while_it_opens_saves_and_leaves(tmp_path: Path, world_size: int) -> None:
    values = recipe(tmp_path)
    assert (
        gloo.run(world_size, train_worker, values, None, None, stop_while_opening) == [REQUEUE_EXIT_CODE] * world_size
    )
    assert last_checkpoint(tmp_path / "run").step == world_size  # several ranks know of it one step later


def test_a_failed_run_says_so(tmp_path: Path) -> None:
    values = recipe(tmp_path, epochs=1)
    damage(str(tmp_path / "train"), 23)
    (said,) = gloo.run(1, train_worker, values)
    assert "damaged" in str(said)
    assert '"state": "failed"' in (tmp_path / "run" / "run.json").read_text()
    assert any(event["event"] == "failed" for event in read_events(tmp_path / "run"))
    assert not (tmp_path / "run" / ".lock").exists()


@pytest.mark.parametrize(
    ("field", "sentence"),
    [
        ("ledger", "its state has no 'ledger', so it was written by another version"),
        ("rng", "its state has no 'rng'"),
        ("order", "shards is not noted in the checkpoint"),
        ("summary", None),
        ("scaler", None),
        ("seconds", None),
        ("num_averaged", None),
        ("best_score", None),
        ("answers_by", None),
    ],
)
def test_a_checkpoint_that_lacks_a_field_goes_on_or_is_refused_in_one_sentence(
    tmp_path: Path, field: str, sentence: str | None
) -> None:
    assert gloo.run(1, train_worker, recipe(tmp_path), 4) == [REQUEUE_EXIT_CODE]
    change_state(tmp_path / "run", lambda state: state.pop(field))
    (ended,) = gloo.run(1, train_worker, recipe(tmp_path))
    assert ended == 0 if sentence is None else sentence in ended
