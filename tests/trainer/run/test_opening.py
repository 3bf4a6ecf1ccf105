"""Where a run begins and where it goes on, in real processes: what is taken, what is written down, what is refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import gloo
import pytest
import torch
from old_checkpoints import save_as_before
from shard_sets import make_shard_set
from training_runs import SMALL_TOWER, end_state, last_checkpoint, losses, recipe, train_worker

from core.config import from_mapping
from core.manifest import TextEncoderSpec, load_manifest, save_manifest
from eval.encoder import load_encoder
from trainer.checkpoint.folder import load_checkpoint
from trainer.checkpoint.weights import read_weights
from trainer.config import TrainConfig
from trainer.guard.signals import REQUEUE_EXIT_CODE
from trainer.models.build import build_encoder
from trainer.models.trained import TrainedModel
from trainer.run.folder import read_events
from trainer.trackers.metrics_csv import read_metrics

CPU = torch.device("cpu")


def events_of(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(run_dir) if event["event"] == kind]


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """A run of one epoch whose pictures were normalised in a way of its own."""
    values = recipe(tmp_path, run_dir=tmp_path / "first", epochs=1, model={**SMALL_TOWER, "normalize": "half"})
    assert gloo.run(1, train_worker, values) == [0]
    return tmp_path / "first"


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_run_begins_with_weights_of_another_and_goes_on_from_its_own(
    tmp_path: Path, first: Path, world_size: int
) -> None:
    def values(name: str) -> dict[str, Any]:
        start = {"start_from": str(first / "latest"), "optim": {"ema_decay": 0.9}}
        return recipe(tmp_path, run_dir=tmp_path / name, model=SMALL_TOWER, **start)

    assert gloo.run(world_size, train_worker, values("whole")) == [0] * world_size
    checkpoint = last_checkpoint(tmp_path / "whole")
    assert checkpoint.step == 12 and checkpoint.identity["image"]["mean"] == [0.5] * 3
    (noted,) = events_of(tmp_path / "whole", "started from")
    source = last_checkpoint(first).path
    assert noted["path"] == str(source) and noted["step"] == 0 and noted["left"] == {}
    assert noted["parts"] == {"tower": 8, "head": 4, "logit_scale": 1}
    assert noted["reason"] == f"start_from={first / 'latest'} start_parts=all"

    stopped = [REQUEUE_EXIT_CODE] * world_size
    assert gloo.run(world_size, train_worker, values("broken"), 4) == stopped
    shutil.rmtree(first)  # what it began with is not asked for again
    saved = last_checkpoint(tmp_path / "broken")
    assert gloo.run(world_size, train_worker, values("broken")) == [0] * world_size
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    assert end_state(tmp_path / "broken") == end_state(tmp_path / "whole")
    assert len(events_of(tmp_path / "broken", "started from")) == 1
    (resumed,) = events_of(tmp_path / "broken", "resumed")
    assert (resumed["step"], resumed["path"]) == (saved.step, str(saved.path))
    assert resumed["reason"] == "the newest checkpoint"


@pytest.mark.parametrize("world_size", [1, 2])
def test_weights_are_the_sources_and_the_schedule_is_new(tmp_path: Path, first: Path, world_size: int) -> None:
    optim = {"lr": 1e-12, "weight_decay": 0.0, "warmup_steps": 4}
    values = recipe(tmp_path, model=SMALL_TOWER, epochs=1, start_from=str(first), optim=optim)
    assert gloo.run(world_size, train_worker, values) == [0] * world_size
    source, end = last_checkpoint(first), last_checkpoint(tmp_path / "run")
    for part in ("encoder", "objective"):
        for name, tensor in source.parts[part].items():
            torch.testing.assert_close(end.parts[part][name], tensor, atol=1e-9, rtol=0)
    measured = {row.step: row.metrics for row in read_metrics(tmp_path / "run" / "metrics.csv")}
    assert [measured[step]["train/lr_head"] for step in range(1, 5)] == [2.5e-13, 5e-13, 7.5e-13, 1e-12]


def test_fine_tuning_on_a_set_of_another_text_encoder_takes_the_tower_and_thaws_it(tmp_path: Path, first: Path) -> None:
    make_shard_set(tmp_path / "other", 40, size=32, embed_dim=12, source="another")
    other = load_manifest(str(tmp_path / "other"))
    encoder = TextEncoderSpec("sentence:other", "main", 12, "f" * 64)
    save_manifest(replace(other, text_encoder=encoder), str(tmp_path / "other"))
    data = {"train": str(tmp_path / "other"), "val": []}
    model = {**SMALL_TOWER, "hidden_dim": 24, "freeze": "tower", "thaw": {"2": "stem", "4": "nothing"}}
    values = recipe(tmp_path, run_dir=tmp_path / "tuned", data=data, model=model, epochs=1, start_from=str(first))
    (said,) = gloo.run(1, train_worker, values)
    assert "has a head for captions embedded by random" in said and "embedded by sentence:other" in said
    assert said.endswith("start_parts=tower.") and "\n" not in said and not (tmp_path / "tuned").exists()

    assert gloo.run(1, train_worker, {**values, "start_parts": "tower", "checkpoint_every": 1, "keep_last": 9}) == [0]
    (noted,) = events_of(tmp_path / "tuned", "started from")
    assert noted["parts"] == {"tower": 8} and set(noted["left"]) == {"head", "logit_scale"}
    source = last_checkpoint(first).parts["encoder"]
    frozen, end = (load_checkpoint(tmp_path / f"tuned/checkpoints/step-{n:08d}").parts["encoder"] for n in (2, 5))
    of_tower = [name for name in source if "tower" in name]
    assert all(torch.equal(frozen[name], source[name]) for name in of_tower), "kept until it is thawed"
    assert not any(torch.equal(end[name], source[name]) for name in of_tower if name.endswith("weight"))
    assert end["image_encoder.head.4.weight"].shape == (12, 24)


def test_a_run_goes_on_from_the_checkpoint_that_resume_names(tmp_path: Path) -> None:
    values = recipe(tmp_path, model=SMALL_TOWER, keep_last=9)
    assert gloo.run(1, train_worker, values) == [0]
    whole = losses(tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "step-00000004"
    assert gloo.run(1, train_worker, {**values, "resume": str(path)}) == [0]
    (resumed,) = events_of(tmp_path / "run", "resumed")
    assert (resumed["step"], resumed["path"], resumed["reason"]) == (4, str(path), f"resume={path}")
    assert losses(tmp_path / "run") == whole
    (said,) = gloo.run(1, train_worker, {**values, "resume": str(path), "run_dir": tmp_path / "other"})
    assert "a run goes on in its own" in said and f"start_from={path}." in said and "\n" not in said
    assert not (tmp_path / "other").exists()
    (said,) = gloo.run(
        1, train_worker, {**values, "resume": str(tmp_path / "none" / "latest"), "run_dir": tmp_path / "none"}
    )
    assert "no latest checkpoint there" in said and not (tmp_path / "none").exists()


@pytest.mark.parametrize("averaged", [False, True])
def test_a_checkpoint_of_before_is_evaluated_and_started_from_but_not_resumed(tmp_path: Path, averaged: bool) -> None:
    values = recipe(tmp_path, epochs=1)
    assert gloo.run(1, train_worker, values, 4) == [REQUEUE_EXIT_CODE]
    run_dir, identity = tmp_path / "run", last_checkpoint(tmp_path / "run").identity
    model, average = (model_like(values, fill) for fill in (0.25, 0.5))
    shutil.rmtree(run_dir / "checkpoints")
    old = save_as_before(run_dir, model, averaged=average if averaged else None, identity=identity, step=4)

    expected = average if averaged else model
    weights = read_weights(old)
    assert weights.encoder.keys() == expected.encoder.state_dict().keys()
    assert torch.equal(weights.learned["logit_scale"], expected.learned["logit_scale"])
    encoder = load_encoder(run_dir, CPU)
    assert torch.equal(encoder.scalars["scale"], expected.scalars()["scale"])
    for name, tensor in expected.encoder.state_dict().items():
        assert torch.equal(encoder.model.state_dict()[name], tensor), name

    (said,) = gloo.run(1, train_worker, values)
    assert "was written before checkpoints had an encoder and an objective" in said and "\n" not in said
    assert f"start_from={old}" in said
    anew = {**values, "run_dir": tmp_path / "anew", "start_from": str(old)}
    assert gloo.run(1, train_worker, anew) == [0]
    assert events_of(tmp_path / "anew", "started from")[0]["left"] == {}


def model_like(values: dict[str, Any], fill: float) -> TrainedModel:
    config = from_mapping(TrainConfig, values, "test")
    model = TrainedModel(build_encoder(config.model, config.build_objective(), 8, 32), config.build_objective())
    for parameter in model.learned.values():
        parameter.data.fill_(fill)
    model.encoder.image_encoder.head[-1].bias.data.fill_(fill)
    return model


def test_averages_begin_anew_where_a_checkpoint_has_none(tmp_path: Path) -> None:
    assert gloo.run(1, train_worker, recipe(tmp_path, model=SMALL_TOWER), 4) == [REQUEUE_EXIT_CODE]
    stopped_at = last_checkpoint(tmp_path / "run").step
    assert gloo.run(1, train_worker, recipe(tmp_path, model=SMALL_TOWER, optim={"ema_decay": 0.9})) == [0]
    checkpoint = last_checkpoint(tmp_path / "run")
    assert checkpoint.state["num_averaged"] == 12 - stopped_at and "ema" in checkpoint.parts


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"objective": {"name": "infonce", "label_smoothing": 2}}, "label_smoothing is 2"),
    ({"optim": {"part_lr": {"towr": 1e-3}}}, "nothing called 'towr' is trained"),
    ({"start_from": "nowhere"}, "no checkpoint there"),
    ({"start_from": "nowhere.pth"}, "there is no file nowhere.pth"),
    ({"start_parts": "head"}, "nothing is started from"),
    ({"start_from": "a", "model": {"weights": "b.pth", "normalize": "half"}}, "both give the tower its weights"),
    ({"model": {"weights": "runs/a/best"}}, "start_from=runs/a/best"),
    ({"model": {"weights": "IMAGENET1K_V9"}}, "no weights 'IMAGENET1K_V9'"),
    ({"global_batch_size": 64}, "64"),
    ({"accumulate": 3}, "accumulate is 3: a process has 8 of the 8 pairs"),
    ({"optim": {"warmup_steps": 40}}, "optim.warmup_steps is 40, but the run has 12 steps"),
    ({"model": {"tower": "resnet19"}}, "resnet1"),
    ({"model": {"tower": "resnet18", "weights": "nowhere/weights.pth", "normalize": "imagenet"}}, "nowhere"),
    ({"data": {"train": "nowhere"}}, "nowhere: no manifest.json"),
    ({"data": {"columns": {"label": "labels"}}, "objective": {"name": "supcon"}}, "labels"),
]


@pytest.mark.parametrize(("changes", "sentence"), MISTAKES, ids=[sentence for _, sentence in MISTAKES])
def test_mistakes_end_before_a_folder_is_made(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    (said,) = gloo.run(1, train_worker, recipe(tmp_path, **changes))
    assert isinstance(said, str) and sentence in said and "\n" not in said
    assert not (tmp_path / "run").exists()


def test_weights_of_another_shape_leave_no_folder(tmp_path: Path, first: Path) -> None:
    values = recipe(tmp_path, start_from=str(first), model={**SMALL_TOWER, "hidden_dim": 32})
    (said,) = gloo.run(1, train_worker, values)
    assert "image_encoder.head.1.weight is (16, 16), this recipe's is (32, 16)" in said and "start_parts=tower" in said
    assert not (tmp_path / "run").exists()
    assert gloo.run(1, train_worker, {**values, "start_parts": "tower"}) == [0]


def train_without(package: str, lacking: int, values: dict[str, Any]) -> int | str:
    """Train where the machine of one rank has no such package."""

    def plant() -> None:
        import importlib.util

        from core.distributed import rank

        real = importlib.util.find_spec
        if rank() == lacking:
            importlib.util.find_spec = lambda name, *rest: None if name == package else real(name, *rest)  # type: ignore

    return train_worker(values, plant=plant)


@pytest.mark.parametrize(
    ("package", "tracking"),
    [("tensorboard", {"wandb": "disabled", "tensorboard": True}), ("wandb", {"wandb": "offline"})],
)
def test_the_machine_of_rank_0_alone_needs_trackers(tmp_path: Path, package: str, tracking: dict[str, Any]) -> None:
    pytest.importorskip(package)
    values = recipe(tmp_path, epochs=1, data={"val": None}, tracking=tracking)
    said = gloo.run(2, train_without, package, 0, values)
    assert said[0] == said[1] and f"{package} is not installed" in said[0], "both end, in one sentence"
    assert not (tmp_path / "run").exists(), "before anything is made"
    assert gloo.run(2, train_without, package, 1, values) == [0, 0]
