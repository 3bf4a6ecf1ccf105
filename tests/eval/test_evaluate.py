"""Evaluation from checkpoint to results and report, on a tiny tower; every mistake ends in one sentence."""

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

import gloo
import numpy as np
import pytest
import torch
from evaluated_runs import classes_of, config_of, embed_by_stand_in, write_pictures_alone, write_run
from rich.console import Console
from shard_sets import make_shard_set
from training_runs import SMALL_TOWER, recipe, register_small_tower, train_worker

from core.columns import ColumnHead, ColumnValues, ShardValues, publish_column
from core.config import Choice, from_mapping
from core.errors import CheckpointError, ConfigError, DataError, WeightsError
from core.manifest import TextEncoderSpec, load_manifest, save_manifest
from core.shard_set import ShardSet
from core.text_encoders import choice_of
from eval.config import EvalConfig
from eval.encoder import load_encoder, text_embedder
from eval.evaluate import evaluate
from eval.features import load_features
from eval.metrics import summarise
from eval.ranks import retrieval_ranks
from trainer.checkpoint.folder import save_checkpoint
from trainer.trackers.metrics_csv import read_metrics

QUIET = Console(quiet=True)
register_small_tower()


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run folder with one checkpoint of an untrained tower."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    write_run(folder)
    return folder


@pytest.fixture
def shards(tmp_path):
    return make_shard_set(tmp_path / "val", 12, num_captions=[1 + n % 3 for n in range(12)], split="val")


@pytest.fixture
def embedded(monkeypatch):
    embed_by_stand_in(monkeypatch)


def test_an_evaluation_writes_results_pictures_and_one_report(run_dir, shards, tmp_path, embedded):
    out = tmp_path / "out"
    config = config_of(run_dir, shards, out, queries=("sport",), classes=("person", "grand_piano"), num_examples=3)
    results = evaluate(config, QUIET)
    written = json.loads((out / "results.json").read_text())
    assert written == results
    features = load_features(out / "features.safetensors", encoder=results["encoder"]).features
    expected = summarise(retrieval_ranks(features))
    assert {d: results[d] for d in ("image_to_text", "text_to_image")} == expected
    flat = {f"{direction}/{name}": value for direction, figures in expected.items() for name, value in figures.items()}
    assert results["figures"] == flat
    assert results["protocol"] == f"full gallery: 12 images x {len(features.texts)} captions"
    assert results["val_loss"]["batch_size"] == 4
    assert [len(query["answers"]) for query in results["queries"]] == [5]
    assert results["zero_shot"]["classes"] == ["person", "grand piano"]
    assert len(results["zero_shot"]["examples"]) == 6
    for name in ("recall.png", "ranks.png", "similarity.png", "text_queries.jpg", "zero_shot.jpg"):
        assert (out / "pictures" / name).stat().st_size > 2000, name
    html = (out / "report.html").read_text()
    assert "tiny" in html and "“sport”" in html and "grand piano" in html


def test_two_evaluations_of_one_checkpoint_agree(run_dir, shards, tmp_path):
    results = [evaluate(config_of(run_dir, shards, tmp_path / name), QUIET) for name in ("a", "b")]
    changing = ("evaluated", "seconds", "config", "run_dir")
    first, second = ({k: v for k, v in r.items() if k not in changing} for r in results)
    assert first == second


def test_labelled_shards_give_accuracy_over_their_classes(run_dir, shards, tmp_path, embedded, monkeypatch):
    labelled = make_shard_set(tmp_path / "labelled", 6, num_captions=1, seed=3)
    save_manifest(replace(load_manifest(labelled), classes=("cat", "dog")), labelled)
    monkeypatch.setattr(ShardSet, "info", lambda self, sample: {"label": ("cat", "dog")[sample % 2], "captions": ["x"]})
    monkeypatch.setattr(ShardSet, "captions", lambda self, sample: ["x"] * 9)
    results = evaluate(config_of(run_dir, shards, tmp_path / "out", labelled_shards=(labelled,)), QUIET)
    found = results["zero_shot_labelled"]
    assert found["num_images"] == 6
    assert np.array(found["confusion"]).sum(axis=1).tolist() == [3, 3]
    assert np.trace(np.array(found["confusion"])) / 6 == pytest.approx(found["top1"])
    assert results["knn"]["gallery"] == "leave-one-out" and results["knn"]["num_images"] == 6
    assert 0 <= results["figures"]["knn/accuracy"] <= 1


def test_labelled_shards_without_labels_are_refused(run_dir, shards, tmp_path):
    with pytest.raises(DataError, match="has no class labels"):
        evaluate(config_of(run_dir, shards, tmp_path / "out", labelled_shards=(shards,)), QUIET)


@pytest.fixture
def pictures_alone(tmp_path):
    return write_pictures_alone(tmp_path)


def test_an_encoder_of_pictures_alone_is_measured_by_its_neighbours(pictures_alone, shards, tmp_path):
    run, train = pictures_alone
    save_manifest(replace(load_manifest(shards), text_encoder=None), shards)  # nobody asks for captions
    classes_of(shards, 12, unlabelled=[11])
    out = tmp_path / "out"
    results = evaluate(config_of(run, shards, out, num_examples=3), QUIET)
    assert set(results["figures"]) == {"knn/accuracy", "knn1/accuracy"} and results["text_encoder"] is None
    fingerprint = ShardSet.open(train, text="").fingerprint
    assert results["knn"]["gallery"] == {
        "shards": [train], "fingerprint": fingerprint, "num_images": 15, "of": 15
    }  # fmt: skip
    assert results["knn"]["num_images"] == 11 and results["knn"]["num_classes"] == 3
    assert "val_loss" not in results and "image_to_text" not in results
    example = results["knn"]["neighbours"][0]
    assert len(example["answers"]) == 5 and {a["is_right"] for a in example["answers"]} <= {True, False}
    assert all(a["is_right"] == (a["class"] == example["class"]) for a in example["answers"])
    assert (out / "pictures" / "neighbours.jpg").stat().st_size > 2000
    html = (out / "report.html").read_text()
    assert "queries=" not in html.split('<h2 id="setup"')[0]  # no remedy that would be refused
    assert "trained without captions" in html and "the nearest alone" in html and "cow" not in html.split("<h2")[0]
    with pytest.raises(DataError, match="features of pictures alone"):
        load_features(out / "features.safetensors")


def test_a_probe_and_same_class_retrieval_are_measured_shown_and_written(pictures_alone, shards, tmp_path):
    run, train = pictures_alone
    classes_of(shards, 12)
    out, listed = tmp_path / "out", (Choice("same_class"), Choice("linear_probe"))
    results = evaluate(config_of(run, shards, out, evaluations=listed), QUIET)
    (found,), (probe,) = results["evaluations"]["same_class"], results["evaluations"]["linear_probe"]
    assert found["num_gallery"] == probe["num_training"] == 15 and probe["trained_on"] == "gallery"
    assert results["figures"]["same_class/precision@1"] == results["figures"]["knn1/accuracy"]
    query = json.loads((out / "evaluations/same_class.json").read_text())["queries"][0]
    assert query["key"] == ShardSet.open(shards).key(query["sample"])
    answers = [(answer["key"], answer["class"]) for answer in query["answers"]]
    keys = [ShardSet.open(train).key(answer["sample"]) for answer in query["answers"]]
    assert answers == [(key, ("dog", "cat", "cow")[a["sample"] % 3]) for key, a in zip(keys, query["answers"])]
    html = (out / "report.html").read_text()
    for said in ("Same-class retrieval: by class", "Linear probe: regulariser", "learned from 15 labelled pictures"):
        assert said in html
    low = results["figure_intervals"]["knn/accuracy"]["low"]
    assert f"20 neighbours [{100 * low:.1f}, " in html


def test_without_its_training_set_an_encoder_is_measured_by_leaving_one_out(pictures_alone, shards, tmp_path):
    run, train = pictures_alone
    classes_of(shards, 12)
    given = evaluate(config_of(run, shards, tmp_path / "a", gallery=(train,)), QUIET)
    Path(train).rename(tmp_path / "elsewhere")
    results = evaluate(config_of(run, shards, tmp_path / "b"), QUIET)
    assert results["knn"]["gallery"] == "leave-one-out"
    assert "leave-one-out" in (tmp_path / "b" / "report.html").read_text()
    again = evaluate(config_of(run, shards, tmp_path / "c", gallery=(str(tmp_path / "elsewhere"),)), QUIET)
    assert again["figures"] == given["figures"]


def test_what_an_encoder_of_pictures_alone_cannot_answer_is_refused(pictures_alone, shards, tmp_path):
    run, _ = pictures_alone
    with pytest.raises(DataError, match="has no class labels"):
        evaluate(config_of(run, shards, tmp_path / "out"), QUIET)
    classes_of(shards, 12)
    with pytest.raises(ConfigError, match="queries: .* was trained without captions.* Leave queries out"):
        evaluate(config_of(run, shards, tmp_path / "out", queries=("sport",)), QUIET)
    bare = make_shard_set(tmp_path / "bare", 5)
    with pytest.raises(DataError, match="gallery: .*bare has no class labels"):
        evaluate(config_of(run, shards, tmp_path / "out", gallery=(bare,)), QUIET)


def test_training_and_evaluation_report_the_same_loss_and_figures(tmp_path):
    """Objective, options and scalars come from the checkpoint; the best step's row of metrics.csv is its own."""
    objective = {"name": "infonce", "label_smoothing": 0.2, "init_temperature": 0.1}
    values = recipe(tmp_path, model=SMALL_TOWER, objective=objective, best_by="val/loss", precision="no")
    assert gloo.run(1, train_worker, values) == [0]
    rows = [row for row in read_metrics(tmp_path / "run" / "metrics.csv") if "val/loss" in row.metrics]
    best = min(rows, key=lambda row: row.metrics["val/loss"])
    results = evaluate(config_of(tmp_path / "run", str(tmp_path / "val"), tmp_path / "out"), QUIET)
    assert results["checkpoint"] == f"step-{best.step:08d}" and len(rows) == 3
    assert results["val_loss"]["value"] == pytest.approx(best.metrics["val/loss"], abs=1e-6)
    assert {f"val/{name}": value for name, value in results["figures"].items()} == pytest.approx(
        {name: value for name, value in best.metrics.items() if name.startswith("val/") and name != "val/loss"}
    )
    plain = {**values, "objective": {**objective, "label_smoothing": 0.0}, "run_dir": tmp_path / "plain"}
    assert gloo.run(1, train_worker, plain) == [0]  # the option matters to the figure
    other = [
        row.metrics["val/loss"] for row in read_metrics(tmp_path / "plain" / "metrics.csv") if "val/loss" in row.metrics
    ]
    assert abs(other[0] - rows[0].metrics["val/loss"]) > 1e-3


def test_a_run_of_pictures_alone_trains_to_a_checkpoint_that_evaluates_the_same(tmp_path):
    values = recipe(tmp_path, model=SMALL_TOWER, objective={"name": "nt_xent"}, precision="no")
    for split, count in (("train", 50), ("val", 12)):
        classes_of(str(tmp_path / split), count, ("cat", "dog", "cow"))
    assert gloo.run(1, train_worker, values) == [0]
    rows = [row for row in read_metrics(tmp_path / "run" / "metrics.csv") if "val/knn/accuracy" in row.metrics]
    best = max(rows, key=lambda row: row.metrics["val/knn/accuracy"])  # of equal ones the first
    results = evaluate(config_of(tmp_path / "run", str(tmp_path / "val"), tmp_path / "out"), QUIET)
    assert results["checkpoint"] == f"step-{best.step:08d}" and "val/loss" not in best.metrics
    assert results["figures"]["knn/accuracy"] == pytest.approx(best.metrics["val/knn/accuracy"])
    assert results["figures"]["knn1/accuracy"] == pytest.approx(best.metrics["val/knn1/accuracy"])
    registry = (tmp_path / "registry.csv").read_text().splitlines()
    assert "knn_accuracy" in registry[0]


def test_a_run_against_itself_gains_nothing(run_dir, shards, tmp_path):
    evaluate(config_of(run_dir, shards, tmp_path / "a"), QUIET)
    results = evaluate(config_of(run_dir, shards, tmp_path / "b", baseline=tmp_path / "a"), QUIET)
    gains = results["against_baseline"]
    assert gains["text_to_image"]["10"] == {"estimate": 0.0, "low": 0.0, "high": 0.0}
    with pytest.raises(ConfigError, match=r"baseline: .*absent.ranks.safetensors is missing"):
        evaluate(config_of(run_dir, shards, tmp_path / "c", baseline=tmp_path / "absent"), QUIET)


def test_a_baseline_on_other_shards_is_refused(run_dir, shards, tmp_path):
    evaluate(config_of(run_dir, shards, tmp_path / "a"), QUIET)
    other = make_shard_set(tmp_path / "other", 9, num_captions=2)
    with pytest.raises(DataError, match="is of other shards"):
        evaluate(config_of(run_dir, other, tmp_path / "b", baseline=tmp_path / "a"), QUIET)


def test_other_captions_and_equal_ones_are_counted_where_a_recipe_says_so(run_dir, shards, tmp_path, embedded):
    lines = [{"image_id": str(image), "captions": ["a dog", f"a boat {image}"]} for image in (3, 5, 8)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    own = config_of(run_dir, shards, tmp_path / "a", captions=tmp_path / "own.jsonl")
    results = evaluate(own, QUIET)
    digest = hashlib.sha256((tmp_path / "own.jsonl").read_bytes()).hexdigest()[:16]
    assert results["protocol"].startswith(
        f"full gallery: 3 images x 6 captions, captions of own.jsonl (sha256 {digest})"
    )
    assert {example["query"] for example in results["examples"]["captions"]} == {"a dog"}
    alike = evaluate(replace(own, equal_captions=True, out=tmp_path / "b"), QUIET)
    assert alike["protocol"].startswith("equal captions: 3 images x 6 captions, a caption is right")
    assert all(answer["is_right"] for found in alike["examples"]["captions"] for answer in found["answers"])
    right = load_features(tmp_path / "b" / "features.safetensors").features.more_right
    assert right.kind == "equal captions" and len(right.images) == 6
    with pytest.raises(DataError, match=r"right answers by own captions, this evaluation by equal captions"):
        evaluate(replace(own, equal_captions=True, out=tmp_path / "c", baseline=tmp_path / "a"), QUIET)


def test_shards_of_another_encoder_are_refused_with_both_names(run_dir, shards, tmp_path):
    other = replace(load_manifest(shards), text_encoder=TextEncoderSpec("minilm", "1", 8, "f" * 64))
    save_manifest(other, shards)
    with pytest.raises(CheckpointError, match=r"embedded by minilm \(1, 8 wide.*trained against random \(0, 8 wide"):
        evaluate(config_of(run_dir, shards, tmp_path / "out"), QUIET)


def test_the_text_column_of_the_checkpoints_encoder_is_found(run_dir, shards, tmp_path):
    before = evaluate(config_of(run_dir, shards, tmp_path / "before"), QUIET)
    shard_set, manifest = ShardSet.open(shards), load_manifest(shards)
    own = [shard_set.embeddings(sample) for sample in range(len(shard_set))]
    counts = np.array([len(values) for values in own], "<i4")
    head = ColumnHead(
        "text.random", "text", "caption", "<f2", (8,), {"text_encoder": asdict(shard_set.text_encoder)},
        shard_set.fingerprint,
    )  # fmt: skip
    shards_of = np.split(np.arange(len(own)), np.cumsum(shard_set.shard_sizes)[:-1])
    parts = [ShardValues(np.concatenate([own[n] for n in rows]), counts[rows]) for rows in shards_of]
    publish_column(shards, head, [entry.name for entry in manifest.shards], ColumnValues(parts))
    for stored in (None, TextEncoderSpec("minilm", "1", 8, "f" * 64)):
        save_manifest(replace(manifest, text_encoder=stored), shards)
        after = evaluate(config_of(run_dir, shards, tmp_path / "after"), QUIET)
        assert after["text_to_image"] == before["text_to_image"]


def test_shards_of_another_width_are_refused(run_dir, tmp_path):
    wide = make_shard_set(tmp_path / "wide", 4, embed_dim=16)
    with pytest.raises(CheckpointError, match=r"16 wide.*8 wide.*Add them to each with"):
        evaluate(config_of(run_dir, wide, tmp_path / "out"), QUIET)


def test_shards_without_embeddings_are_refused(run_dir, shards, tmp_path):
    save_manifest(replace(load_manifest(shards), text_encoder=None), shards)
    with pytest.raises(CheckpointError, match="has no caption embeddings.*`shardclip column text .* encoder=random`"):
        evaluate(config_of(run_dir, shards, tmp_path / "out"), QUIET)


def test_a_run_without_a_checkpoint_is_named(shards, tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint there"):
        evaluate(config_of(tmp_path / "nothing", shards, tmp_path / "out"), QUIET)


def test_weights_that_do_not_fit_their_own_description_are_refused(tmp_path):
    write_run(tmp_path / "run")
    path = next((tmp_path / "run" / "checkpoints").iterdir())
    from trainer.checkpoint.folder import load_checkpoint

    whole = load_checkpoint(path)
    identity = {**whole.identity, "model": {**whole.identity["model"], "hidden_dim": 24}}
    save_checkpoint(
        tmp_path / "bad" / "checkpoints", parts=whole.parts, optimizer_state={}, state={"step": 4},
        identity=identity, keep_last=1, is_best=True,
    )  # fmt: skip
    with pytest.raises(CheckpointError, match="its weights do not fit the model it names"):
        load_encoder(tmp_path / "bad", torch.device("cpu"))


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"protocols": "coco5k"}, "unknown protocol 'coco5k'"),
        ({"templates": "a photo"}, "needs exactly one {}"),
        ({"querys": "sport"}, "unknown key 'querys'. Did you mean 'queries'?"),
        ({"templates_file": "absent.txt"}, "absent.txt: no such file of classes or templates"),
    ],
)
def test_a_wrong_recipe_stops_before_anything_is_read(recipe, message):
    with pytest.raises(ConfigError) as error:
        from_mapping(EvalConfig, {"checkpoint": "runs/x", "shards": "data/x", **recipe}, "recipe.yaml")
    assert message in str(error.value)


def test_cuda_is_not_replaced_silently(run_dir, shards, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="device: cuda is asked for and there is none"):
        evaluate(replace(config_of(run_dir, shards, tmp_path), device="cuda"), QUIET)


@pytest.mark.parametrize(
    ("name", "revision", "choice"),
    [
        ("minilm", "53aa51172d14", Choice("minilm")),
        ("minilm", "53aa51172d14+bf16", Choice("minilm", {"precision": "bf16"})),
        (
            "hf_clip:openai/clip-vit-base-patch32",
            "3d74acf",
            Choice("hf_clip", {"model": "openai/clip-vit-base-patch32", "revision": "3d74acf"}),
        ),
        ("sentence:my-bert", "local", Choice("sentence", {"model": "my-bert"})),
    ],
)
def test_a_text_encoder_is_found_again_by_its_name(name, revision, choice):
    assert choice_of(TextEncoderSpec(name, revision, 8, "0" * 64)) == choice


def test_another_build_of_the_text_encoder_is_refused():
    spec = TextEncoderSpec("minilm", "other", 384, "1" * 64)
    with pytest.raises(
        WeightsError, match=r"minilm \(53aa.*is found, the checkpoint was trained against minilm \(other"
    ):
        text_embedder(spec, Choice("minilm"), torch.device("cpu"))


def test_the_packaged_text_encoder_embeds_queries():
    from core.text_encoders import TEXT_ENCODERS

    spec = TEXT_ENCODERS["minilm"]().spec
    dog, puppy, bank = text_embedder(spec, None, torch.device("cpu"))(["a dog", "a puppy", "a bank statement"])
    assert dog.shape == (384,)
    assert dog @ puppy > 0.6 > dog @ bank
