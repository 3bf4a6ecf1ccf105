"""Several evaluated sets, or one that is named twice: no figure is lost, and none stands for another set."""

import json

import pytest
from evaluated_runs import classes_of, config_of, embed_by_stand_in, write_pictures_alone, write_run
from rich.console import Console
from shard_sets import make_shard_set

from core.config import Choice
from eval.evaluate import evaluate

QUIET = Console(quiet=True)


@pytest.fixture
def embedded(monkeypatch):
    embed_by_stand_in(monkeypatch)


@pytest.fixture
def run_dir(tmp_path):
    write_run(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def shards(tmp_path):
    return make_shard_set(tmp_path / "val", 12, num_captions=[1 + n % 3 for n in range(12)], split="val")


def test_of_two_sets_the_flat_figures_are_those_of_the_first(run_dir, shards, tmp_path, embedded):
    labelled = make_shard_set(tmp_path / "labelled", 9, num_captions=1, seed=3)
    classes_of(labelled, 9)
    listed = (Choice("feature_map", {"methods": ["pca"], "num_neighbours": 3}),)
    given = {"labelled_shards": (labelled,), "evaluations": listed}
    results = evaluate(config_of(run_dir, shards, tmp_path / "out", **given), QUIET)
    parts = results["evaluations"]["feature_map"]
    assert [part["shards"] for part in parts] == [[shards], [labelled]]
    explained = [part["figures"]["feature_map/pca/explained"] for part in parts]
    assert explained[0] != explained[1] and results["figures"]["feature_map/pca/explained"] == explained[0]


def test_a_labelled_set_loses_nothing_where_its_captions_are_others_or_it_is_named_twice(
    run_dir, shards, tmp_path, embedded
):
    classes_of(shards, 12)
    lines = [{"image_id": str(image), "captions": ["a dog", f"a boat {image}"]} for image in range(8)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    listed = (Choice("modality_gap"), Choice("same_class"), Choice("feature_map", {"methods": ["pca"]}))
    found = {
        name: evaluate(config_of(run_dir, shards, tmp_path / name, evaluations=listed, **more), QUIET)
        for name, more in (
            ("plain", {}),
            ("twice", {"labelled_shards": (shards,)}),
            ("others", {"captions": tmp_path / "own.jsonl"}),
        )
    }
    plain, twice, others = (found[name]["figures"] for name in ("plain", "twice", "others"))
    assert plain == {name: twice[name] for name in plain}
    assert {name for name in twice if name not in plain} == {
        f"zero_shot/{f}" for f in ("accuracy", "top5", "mean_per_class")
    }
    assert others.keys() == plain.keys() and others["same_class/map@10"] == plain["same_class/map@10"]
    for results in found.values():
        assert {name: len(parts) for name, parts in results["evaluations"].items()} == {
            "modality_gap": 1, "same_class": 1, "feature_map": 1,
        }  # fmt: skip


def test_what_could_be_measured_is_offered_and_files_of_before_are_gone(shards, tmp_path):
    run, _ = write_pictures_alone(tmp_path)
    classes_of(shards, 12, ("dog", "cat", "cow"))
    evaluate(config_of(run, shards, tmp_path / "out", evaluations=(Choice("same_class"),)), QUIET)
    assert (tmp_path / "out/evaluations/same_class.json").exists()
    evaluate(config_of(run, shards, tmp_path / "out"), QUIET)
    assert not (tmp_path / "out/evaluations/same_class.json").exists()
    offered = (tmp_path / "out/report.html").read_text().split('id="more"')[1].split("</div>")[0]
    assert "evaluations=same_class,linear_probe,class_robustness,feature_map,against_knn" in offered
