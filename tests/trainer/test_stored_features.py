"""A head trained on its tower's stored outputs is the head that pictures train; the checkpoint is the whole encoder."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import gloo
import pytest
import torch
import torchvision
from column_sets import add
from rich.console import Console
from training_runs import last_checkpoint, losses, recipe, train_worker

from core.config import from_mapping
from core.errors import ConfigError
from core.shard_set import ShardSet
from eval.config import EvalConfig
from eval.evaluate import evaluate
from trainer.config import TrainConfig
from trainer.data.inputs import evaluation_inputs
from trainer.data.loader import TrainLoader
from trainer.models.build import build_encoder
from trainer.models.encoder import Encoder
from trainer.objectives.infonce import InfoNCE
from trainer.pictures.augment import Normalize
from trainer.trackers.metrics_csv import read_metrics

TOWER, SIZE = "shufflenet_v2_x0_5", 64
COLUMN = f"features.{TOWER}"
PLAIN = {"crop_scale": (1.0, 1.0), "flip": 0.0}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = torchvision.models.get_model(TOWER)
    model(torch.randn(8, 3, SIZE, SIZE))  # batch statistics
    path = tmp_path / "tower.pth"
    torch.save(model.state_dict(), path)
    return path


def frozen(tmp_path: Path, weights: Path, name: str, **changes: Any) -> dict[str, Any]:
    """A recipe of a frozen tower over unchanged pictures."""
    model = {"tower": TOWER, "weights": str(weights), "normalize": "imagenet", "freeze": "tower", "dropout": 0.3}
    settings = {"model": model, "augment": PLAIN, "image_size": SIZE, "precision": "no", **changes}
    return recipe(tmp_path, run_dir=tmp_path / name, **settings)


def make_features(values: dict[str, Any], weights: Path, **options: Any) -> None:
    shape = {"normalize": "imagenet", "image_size": SIZE, "num_workers": 0}
    for split in ("train", "val"):
        named = {"tower": TOWER, "weights": str(weights), **shape, **options}
        add("features", values["data"][split], cache=weights.parent / "cache", **named)


@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 1), pytest.param(2, 2)])
def test_stored_features_train_the_same_head(tmp_path: Path, weights: Path, world_size: int, accumulate: int) -> None:
    pixels = frozen(tmp_path, weights, "pixels", accumulate=accumulate)
    make_features(pixels, weights)
    stored = frozen(tmp_path, weights, "stored", accumulate=accumulate, data={"image_features": COLUMN})
    for values in (pixels, stored):
        assert gloo.run(world_size, train_worker, values) == [0] * world_size
    ours, theirs = losses(tmp_path / "stored"), losses(tmp_path / "pixels")
    assert max(abs(float(ours[step]) - float(theirs[step])) for step in theirs) < 1e-4 and ours.keys() == theirs.keys()

    whole, expected = last_checkpoint(tmp_path / "stored"), last_checkpoint(tmp_path / "pixels")
    for part in ("encoder", "objective"):  # tower included
        assert whole.parts[part].keys() == expected.parts[part].keys()
        for name, tensor in expected.parts[part].items():
            torch.testing.assert_close(whole.parts[part][name], tensor, atol=1e-4, rtol=1e-3)
    measured = read_metrics(tmp_path / "stored" / "metrics.csv")[-1].metrics
    config = EvalConfig(
        shards=(str(tmp_path / "val"),), checkpoint=tmp_path / "stored/latest", out=tmp_path / "eval", num_workers=0
    )
    results = evaluate(config, Console(file=io.StringIO()))  # from pictures
    for direction in ("image_to_text", "text_to_image"):
        assert results[direction]["recall@1"] == pytest.approx(float(measured[f"val/{direction}/recall@1"]), abs=1e-6)


def head_gradients(model: Encoder, inputs: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    features = model({"image": inputs})["image"]
    (features * torch.linspace(-1, 1, features.numel()).view_as(features)).sum().backward()
    return [parameter.grad for parameter in model.image_encoder.head.parameters() if parameter.grad is not None]


def test_gradients_of_the_head_are_those_that_pictures_give(tmp_path: Path, weights: Path) -> None:
    values = frozen(tmp_path, weights, "run")
    make_features(values, weights)
    config = from_mapping(TrainConfig, {**values, "model": {**values["model"], "dropout": 0.0}}, "test")
    shard_set = ShardSet.open(config.data.train)
    model = build_encoder(config.model, InfoNCE(), shard_set.embed_dim, SIZE)
    normalize = Normalize(SIZE, *model.normalization)
    columns = {"text": "", "image_features": COLUMN}
    for batch in TrainLoader(shard_set, global_batch_size=16, columns=columns).epoch(0):
        assert batch.images is not None
        stored = head_gradients(model, batch.column("image_features"))
        seen = head_gradients(model, evaluation_inputs(batch, normalize))
        assert len(stored) == len(seen) == 4
        for ours, theirs in zip(stored, seen):
            assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"image_size": 32}, "was made with size 32, the recipe's tower has 64"),
        ({"normalize": "half"}, "was made with mean [0.5, 0.5, 0.5], the recipe's tower has [0.485"),
    ],
)
def test_features_of_another_tower_are_refused(
    tmp_path: Path, weights: Path, options: dict[str, Any], complaint: str
) -> None:
    values = frozen(tmp_path, weights, "run", data={"image_features": COLUMN})
    make_features(values, weights, **options)
    (said,) = gloo.run(1, train_worker, values)
    assert complaint in said and "Make another one with `shardclip column features" in said


def test_features_of_other_weights_and_other_columns_are_refused(tmp_path: Path, weights: Path) -> None:
    values = frozen(tmp_path, weights, "run", data={"image_features": COLUMN})
    other = tmp_path / "other.pth"
    torch.save(torchvision.models.get_model(TOWER).state_dict(), other)
    make_features(values, other)
    (said,) = gloo.run(1, train_worker, values)
    assert "was made with weights_sha256" in said
    add("labels", values["data"]["train"], cache=tmp_path / "cache", file=str(labels_file(tmp_path)))
    (said,) = gloo.run(1, train_worker, {**values, "data": {**values["data"], "image_features": "labels"}})
    assert "is labels. Name a column of features" in said or "has no column 'labels'" in said


def labels_file(folder: Path) -> Path:
    path = folder / "labels.csv"
    path.write_text("image_id,label\n" + "".join(f"{n},{'cat' if n % 2 else 'dog'}\n" for n in range(50)))
    return path


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"model": {"freeze": "nothing"}}, "model.freeze is nothing. Set model.freeze=tower"),
        ({"augment": {"flip": 0.5}}, "augment changes them"),
        ({"augment": {"crop_scale": (0.5, 1.0)}}, "augment changes them"),
    ],
)
def test_stored_features_ask_for_a_frozen_tower_and_plain_pictures(
    tmp_path: Path, weights: Path, changes: dict[str, Any], complaint: str
) -> None:
    values = frozen(tmp_path, weights, "run", data={"image_features": COLUMN})
    values = {
        key: {**value, **changes.get(key, {})} if isinstance(value, dict) else value for key, value in values.items()
    }
    with pytest.raises(ConfigError, match=complaint):
        from_mapping(TrainConfig, values, "test")


def test_the_doctor_refuses_what_the_run_would(tmp_path: Path, weights: Path) -> None:
    from launch.doctor import Examined, check_frozen_tower, check_sampler

    values = frozen(tmp_path, weights, "run", data={"image_features": COLUMN})
    make_features(values, weights)
    assert [f.level for f in check_frozen_tower(Examined(from_mapping(TrainConfig, values, "test"), 1))] == ["ok"]
    other = {**values, "model": {**values["model"], "normalize": "half"}}
    with pytest.raises(ConfigError, match=r"was made with mean \[0.485"):
        list(check_frozen_tower(Examined(from_mapping(TrainConfig, other, "test"), 1)))
    plain = frozen(tmp_path, weights, "run")
    (advice,) = check_frozen_tower(Examined(from_mapping(TrainConfig, plain, "test"), 1))
    assert advice.level == "warning" and f"data.image_features={COLUMN}" in advice.repair
    large = {**plain, "global_batch_size": 100, "data": {**plain["data"], "sampler": {"name": "mix", "weights": [1]}}}
    with pytest.raises(ConfigError, match="is 100, the data set has 50 samples"):
        list(check_sampler(Examined(from_mapping(TrainConfig, large, "test"), 1)))
