"""An evaluation of a checkpoint says what a set lacks before it computes anything, and keeps what it has computed."""

import pytest
from evaluated_runs import classes_of, config_of, write_run
from rich.console import Console
from shard_sets import make_shard_set

import eval.evaluate
from core.config import Choice
from core.errors import DataError
from eval.evaluate import evaluate
from eval.features import load_features

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run folder with one checkpoint of an untrained tower."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    write_run(folder)
    return folder


@pytest.fixture
def shards(tmp_path):
    return make_shard_set(tmp_path / "val", 12, num_captions=2, split="val")


@pytest.mark.parametrize(
    ("evaluation", "sentence"),
    [
        (Choice("calibration", {"folds": 30}), "captions are of 12 different images"),
        (Choice("linear_probe"), "class cat has 1 picture, which cannot be learned from and measured"),
        (Choice("class_robustness"), "k-NN: 1 pictures with a class and 0 others"),
    ],
)
@pytest.mark.parametrize("apart", [False, True])
def test_a_set_that_is_too_small_is_named_before_anything_is_computed(
    run_dir, shards, tmp_path, monkeypatch, evaluation, sentence, apart
):
    monkeypatch.setattr(eval.evaluate.Evaluating, "extract", None)
    few = make_shard_set(tmp_path / "few", 12) if apart else shards
    classes_of(few, 12, unlabelled=range(1 if "1 pictures" in sentence else 2, 12))
    more = {"labelled_shards": (few,)} if apart else {}
    with pytest.raises(DataError, match=sentence):
        evaluate(config_of(run_dir, shards, tmp_path / "out", evaluations=(evaluation,), **more), QUIET)
    assert not (tmp_path / "out").exists()


def test_features_are_kept_where_an_evaluation_fails(run_dir, shards, tmp_path, monkeypatch):
    def fail(*given):
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(eval.evaluate, "measure_all", fail)
    with pytest.raises(ZeroDivisionError):
        evaluate(config_of(run_dir, shards, tmp_path / "out"), QUIET)
    assert len(load_features(tmp_path / "out" / "features.safetensors").features.images) == 12
    assert not (tmp_path / "out" / "results.json").exists()
