"""Other weights on the same pictures: differences of two evaluations, and `untrained` is step 0 to the bit."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import gloo
import numpy as np
import pytest
import torch
from column_folders import add_column
from evaluated_runs import config_of, write_run
from rich.console import Console
from shard_sets import make_shard_set
from training_runs import SMALL_TOWER, recipe, register_small_tower, train_worker

from core.config import Choice, load_config
from core.errors import CheckpointError, ConfigError, WeightsError
from eval.config import EvalConfig
from eval.early import expect_measurable
from eval.encoder import load_encoder, untrained_encoder
from eval.evaluate import evaluate
from eval.features import load_features
from eval.metrics import percentile_interval
from eval.ranks import retrieval_ranks

QUIET, CPU = Console(quiet=True), torch.device("cpu")
register_small_tower()


def test_differences_are_those_of_two_evaluations(tmp_path):
    shards = make_shard_set(tmp_path / "val", 12, num_captions=3, split="val")
    train = make_shard_set(tmp_path / "train", 15, seed=4, source="train")
    for url, count in ((shards, 12), (train, 15)):
        add_column(url, "labels", (np.arange(count) % 3).astype("<i4"), classes=("cat", "dog", "cow"))
    for name in ("before", "after"):
        write_run(tmp_path / name, data={"train": [train], "columns": {}})
    listed = tuple(Choice(name, {"of": str(tmp_path / "before")}) for name in ("against", "against_knn"))
    of_both = [
        evaluate(config_of(tmp_path / name, shards, tmp_path / f"{name}-out", evaluations=more), QUIET)
        for name, more in (("before", ()), ("after", listed))
    ]
    before, after = (results["figures"] for results in of_both)
    differences = {name.removeprefix("against/"): value for name, value in after.items() if name.startswith("against/")}
    assert len(differences) == 8
    assert differences == pytest.approx({name: after[name] - before[name] for name in differences})
    assert any(differences.values())
    parts = of_both[1]["evaluations"]
    assert parts["against"][0]["theirs"] | parts["against_knn"][0]["theirs"] == {n: before[n] for n in differences}
    # The interval of a direction whose captions are drawn by image, by hand.
    ranks = [
        retrieval_ranks(load_features(tmp_path / f"{n}-out/features.safetensors").features) for n in ("before", "after")
    ]
    gain = (ranks[1].text_to_image <= 5).astype(float) - (ranks[0].text_to_image <= 5)
    generator, means = np.random.default_rng(0), []
    for _ in range(2000):
        drawn = generator.integers(12, size=12)
        means.append(np.mean([gain[3 * image : 3 * image + 3] for image in drawn]))
    interval = parts["against"][0]["intervals"]["against/text_to_image/recall@5"]
    wanted = percentile_interval(interval["estimate"], np.array(means), 12)
    assert [interval["low"], interval["high"]] == pytest.approx([wanted.low, wanted.high])
    assert "Against other weights" in (tmp_path / "after-out/report.html").read_text()


def test_weights_against_themselves_differ_in_nothing(tmp_path):
    shards = make_shard_set(tmp_path / "val", 12, split="val")
    write_run(tmp_path / "run")
    of_itself = (Choice("against", {"of": str(tmp_path / "run/latest")}),)
    results = evaluate(config_of(tmp_path / "run", shards, tmp_path / "out", evaluations=of_itself), QUIET)
    part = results["evaluations"]["against"][0]
    assert set(part["figures"].values()) == {0.0}
    assert {tuple(sorted(interval.values())) for interval in part["intervals"].values()} == {(0.0, 0.0, 0.0)}


def keep_start(path: Path) -> None:
    """Keep what a run begins with."""
    from trainer.run import opening

    build = opening.build_model

    def kept(*arguments):
        model, start = build(*arguments)
        torch.save(model.state_dict(), path)
        return model, start

    opening.build_model = kept


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two runs, the second of which starts from the first; each with the weights that it began with."""
    folder = tmp_path_factory.mktemp("trained")
    short = {"model": SMALL_TOWER, "max_steps": 4, "seed": 5, "optim": {"lr": 0.05, "warmup_steps": 1}}
    for name, more in (("run", {}), ("tuned", {"start_from": str(folder / "run"), "start_parts": "tower", "seed": 6})):
        values = recipe(folder, run_dir=folder / name, **{**short, **more})
        assert gloo.run(1, train_worker, values, None, None, partial(keep_start, folder / f"{name}.pt")) == [0]
    return folder


@pytest.mark.parametrize("name", ["run", "tuned"])
def test_untrained_is_what_the_run_began_with(trained, name):
    encoder = load_encoder(trained / name, CPU)
    torch.manual_seed(11)
    state = torch.get_rng_state()
    model = untrained_encoder(encoder, CPU).model
    assert torch.equal(torch.get_rng_state(), state)  # nobody notices
    began = {k.removeprefix("encoder."): v for k, v in torch.load(trained / f"{name}.pt").items() if "encoder." in k}
    assert began.keys() == model.state_dict().keys()
    assert all(torch.equal(began[key], value) for key, value in model.state_dict().items())
    moved = [key for key, value in encoder.model.state_dict().items() if not torch.equal(began[key], value)]
    assert any(key.startswith("image_encoder.tower.") for key in moved)


def test_training_is_measured_against_its_beginning(trained):
    against = (Choice("against"),)
    results = evaluate(config_of(trained / "run", str(trained / "val"), trained / "out", evaluations=against), QUIET)
    assert results["evaluations"]["against"][0]["of"] == "untrained"
    assert "the weights that the run began with" in (trained / "out/report.html").read_text()


def test_weights_that_are_not_there_are_said_before_anything_is_computed(tmp_path, monkeypatch):
    shards = make_shard_set(tmp_path / "val", 12, split="val")
    write_run(tmp_path / "run")
    missing = config_of(tmp_path / "run", shards, tmp_path / "out", evaluations=(Choice("against", {"of": "nowhere"}),))
    with pytest.raises(CheckpointError, match=r"evaluations: 'against' of nowhere: no checkpoint there\."):
        expect_measurable(missing)
    write_run(tmp_path / "alone", embed_dim=None)
    for of, error, sentence in (
        (tmp_path / "alone", ConfigError, r"'against' compares captions, and .*alone was trained without\."),
        ("untrained", ConfigError, r"its recipe.*run_dir"),  # a checkpoint without a whole recipe
    ):
        listed = (Choice("against", {"of": str(of)}),)
        with pytest.raises(error, match=sentence):
            evaluate(config_of(tmp_path / "run", shards, tmp_path / "out", evaluations=listed), QUIET)
    assert not (tmp_path / "out").exists()


def test_pretrained_weights_that_are_gone_are_named(trained, tmp_path):
    config = load_encoder(trained / "run", CPU).identity["config"]
    config = json.loads(json.dumps(config)) | {
        "model": {**config["model"], "weights": str(tmp_path / "gone.pth"), "normalize": "clip"}
    }
    encoder = load_encoder(trained / "run", CPU)
    encoder.identity["config"] = config
    with pytest.raises(WeightsError, match=r"model\.weights: .*gone\.pth"):
        untrained_encoder(encoder, CPU)


def test_a_recipe_names_them(tmp_path):
    (tmp_path / "eval.yaml").write_text("checkpoint: r\nshards: s\nevaluations: [{name: against, of: runs/before}]\n")
    (choice,) = load_config(EvalConfig, tmp_path / "eval.yaml").evaluations
    assert choice == Choice("against", {"of": "runs/before"})
    with pytest.raises(ConfigError, match=r"of is blank"):
        load_config(EvalConfig, tmp_path / "eval.yaml", ["evaluations=[{name: against, of: ' '}]"])
