"""A row of the towers' table by itself: measured like a checkpoint of pictures alone, and held against runs."""

from __future__ import annotations

import json

import pytest
import torch
from evaluated_runs import classes_of, config_of, write_pictures_alone, write_run
from rich.console import Console
from shard_sets import make_shard_set

from core.config import Choice, load_config
from core.errors import ConfigError, WeightsError
from eval.compare.compare import compare
from eval.compare.early import expect_comparable
from eval.config import EvalConfig
from eval.early import expect_measurable
from eval.encoder import tower_alone
from eval.evaluate import evaluate
from trainer.config import DataConfig, TrainConfig
from trainer.models.build import build_tower
from trainer.models.config import BareTower, ModelConfig
from trainer.run.recipe_model import untrained_model

QUIET, CPU = Console(quiet=True), torch.device("cpu")
TOWER = BareTower("shufflenet_v2_x0_5", seed=3, image_size=32)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A run of pictures alone, its labelled training set, and 12 labelled pictures to measure."""
    folder = tmp_path_factory.mktemp("labelled")
    run, train = write_pictures_alone(folder)
    val = make_shard_set(folder / "val", 12, split="val")
    classes_of(val, 12, ("cat", "dog", "cow"))
    return run, train, val


def of_tower(tower, val, out, **more):
    return EvalConfig(shards=(val,), model=tower, out=out, num_workers=0, device="cpu", **more)


def compare_folders(folders, out):
    return compare(expect_comparable(folders, out), out, QUIET)


def test_it_is_what_a_run_of_its_seed_begins_with(tmp_path):
    config = TrainConfig(
        run_dir=tmp_path / "run", data=DataConfig(("train",)), global_batch_size=8, seed=5,
        model=ModelConfig(tower=TOWER.tower), objective=Choice("nt_xent"),
    )  # fmt: skip
    began = untrained_model(config, None, 32).encoder.image_encoder.tower.state_dict()
    alone = {
        seed: tower_alone(BareTower(TOWER.tower, seed=seed), 32, CPU).model.image_encoder.tower.state_dict()
        for seed in (5, 6)
    }
    assert began.keys() == alone[5].keys()
    assert all(torch.equal(value, alone[5][key]) for key, value in began.items())
    assert not all(torch.equal(value, alone[6][key]) for key, value in began.items())


def test_a_state_dict_is_measured_by_its_own_features(tmp_path, labelled):
    _, train, val = labelled
    torch.manual_seed(9)
    tower = build_tower("shufflenet_v2_x0_5", "none", 32).module
    torch.save(tower.state_dict(), tmp_path / "own.pth")
    state = torch.get_rng_state()
    named = BareTower("shufflenet_v2_x0_5", str(tmp_path / "own.pth"), "imagenet", image_size=32)
    results = evaluate(of_tower(named, val, tmp_path / "out", gallery=(train,)), QUIET)
    assert torch.equal(torch.get_rng_state(), state)
    assert (results["run"], results["run_dir"], results["embed_dim"]) == ("shufflenet_v2_x0_5 (own.pth)", ".", 1024)
    encoder = tower_alone(named, 32, CPU)
    pictures = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    wanted = tower.eval()((pictures / 255 - mean[:, None, None]) / std[:, None, None]).flatten(1)
    wanted = torch.nn.functional.normalize(wanted, dim=1)
    with torch.no_grad():
        assert torch.allclose(encoder.model.image_features(encoder.normalize(pictures)), wanted, atol=1e-5)
    assert "shufflenet_v2_x0_5 (own.pth)" in (tmp_path / "out/report.html").read_text()


def test_a_run_is_held_against_it(tmp_path, labelled):
    run, train, val = labelled
    alone = evaluate(of_tower(TOWER, val, tmp_path / "tower", gallery=(train,)), QUIET)["figures"]
    options = {"tower": TOWER.tower, "seed": TOWER.seed, "image_size": 32}
    results = evaluate(
        config_of(run, val, tmp_path / "run", evaluations=(Choice("against_knn", {"model": options}),)), QUIET
    )
    (part,) = results["evaluations"]["against_knn"]
    assert part["of"] == "shufflenet_v2_x0_5 (untrained)"
    assert part["theirs"] == {name: alone[name] for name in ("knn/accuracy", "knn1/accuracy")}
    for name, theirs in part["theirs"].items():
        assert part["figures"][f"against/{name}"] == pytest.approx(results["figures"][name] - theirs)


def test_towers_and_runs_stand_in_one_comparison(tmp_path, labelled):
    run, train, val = labelled
    listed = (Choice("same_class"), Choice("linear_probe"))
    evaluate(of_tower(TOWER, val, tmp_path / "tower", gallery=(train,), evaluations=listed), QUIET)
    evaluate(config_of(run, val, tmp_path / "run", evaluations=listed), QUIET)
    compare_folders([tmp_path / "tower", tmp_path / "run"], tmp_path / "compared")
    found = json.loads((tmp_path / "compared/compare.json").read_text())
    figures = {row["figure"]: row for row in found["figures"]}
    assert (
        found["notes"][0] == "tower: shufflenet_v2_x0_5 (untrained) is a tower by itself, without a recipe and curves."
    )
    for name in ("knn/accuracy", "linear_probe/accuracy", "same_class/precision@5", "same_class/map@10"):
        (gain,) = figures[name]["gains"]
        before, after = figures[name]["values"]
        assert gain["low"] <= gain["estimate"] == pytest.approx(after - before) and gain["estimate"] <= gain["high"]
    # With another gallery than the run's nothing of neighbours can be compared.
    evaluate(of_tower(TOWER, val, tmp_path / "tower", evaluations=listed), QUIET)
    compare_folders([tmp_path / "tower", tmp_path / "run"], tmp_path / "compared")
    found = json.loads((tmp_path / "compared/compare.json").read_text())
    assert all(row["gains"] == [None] for row in found["figures"])
    assert {line.split(" of ")[0] for line in found["not_comparable"]} == {
        "k-NN", "linear probe", "same-class retrieval",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        (["checkpoint=runs/some"], ConfigError, r"checkpoint is runs/some and model is resnet18 \(untrained\): one of"),
        (["model=null"], ConfigError, r"checkpoint is missing\. Name a run, or a tower by itself"),
        (["out=null"], ConfigError, r"out is missing: resnet18 \(untrained\) has no run folder"),
        (["model.tower=resnet19"], ConfigError, r"no image classifier 'resnet19'.*resnet18"),
        (["model.weights=gone.pth", "model.normalize=half"], WeightsError, r"there is no file gone\.pth"),
        (["model.weights=gone.pth"], ConfigError, r"does not say how its pictures were normalised"),
        (["model.image_size=0"], ConfigError, r"model\.image_size is 0"),
        (["model.dropout=0.1"], ConfigError, r"unknown key 'model\.dropout'|model: unknown key 'dropout'"),
        (
            ["evaluations=[{name: against_knn, of: runs/some, model: {tower: resnet18}}]"],
            ConfigError,
            r"of is runs/some and model is resnet18 \(untrained\): give one of them",
        ),
        (
            ["evaluations=[{name: against_knn, model: {tower: resnet18, weights: a.pth, normalize: clip}}]"],
            WeightsError,
            r"evaluations: 'against_knn' of model\.weights: there is no file a\.pth",
        ),
    ],
)
def test_mistakes_are_said_before_anything_is_loaded(tmp_path, labelled, changes, error, sentence):
    path = tmp_path / "tower.yaml"
    path.write_text(f"model: {{tower: resnet18}}\nshards: {labelled[2]}\nout: {tmp_path / 'out'}\n")
    with pytest.raises(error, match=sentence):
        expect_measurable(load_config(EvalConfig, path, changes))
    assert not (tmp_path / "out").exists()


def test_nothing_of_text_or_of_a_beginning_is_known(tmp_path, labelled):
    for more, sentence in (
        ({"queries": ("a dog",)}, r"queries: shufflenet_v2_x0_5 \(untrained\) was trained without captions"),
        ({"evaluations": (Choice("against_knn"),)}, r"'untrained' is the beginning of a run, and this is a tower"),
        ({"evaluations": (Choice("calibration"),)}, r"'calibration' needs captions"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            evaluate(of_tower(TOWER, labelled[2], tmp_path / "out", **more), QUIET)
    assert not (tmp_path / "out").exists()


def test_it_cannot_be_compared_by_captions(tmp_path, labelled):
    write_run(tmp_path / "run")
    listed = (Choice("against", {"of": "untrained", "model": {"tower": "resnet18"}}),)
    with pytest.raises(ConfigError, match=r"'against': unknown option 'model'"):
        config_of(tmp_path / "run", labelled[2], tmp_path / "out", evaluations=listed)
