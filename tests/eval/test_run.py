"""Evaluation from checkpoint to results and report, on a tiny tower; every mistake ends in one sentence."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from shard_sets import make_shard_set

import eval.run
from core.columns import ColumnHead, ColumnValues, ShardValues, publish_column
from core.config import Choice, from_mapping
from core.errors import CheckpointError, ConfigError, DataError, WeightsError
from core.manifest import TextEncoderSpec, load_manifest, save_manifest
from core.shard_set import ShardSet
from core.text_encoders import choice_of
from eval.encoder import load_encoder, text_embedder
from eval.features import load_features
from eval.metrics import retrieval_ranks, summarise
from eval.run import EvalConfig, evaluate
from trainer.checkpoint.folder import save_checkpoint
from trainer.models.build import build_model
from trainer.models.config import ModelConfig

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run folder with one checkpoint of an untrained tower."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    write_run(folder)
    return folder


def write_run(folder: Path, embed_dim: int = 8) -> None:
    model = build_model(ModelConfig(tower="shufflenet_v2_x0_5", hidden_dim=16), embed_dim, image_size=32)
    mean, std = model.normalization
    save_checkpoint(
        folder / "checkpoints",
        model_state=model.state_dict(),
        optimizer_state={},
        state={"step": 3},
        identity={
            "model": model.describe(),
            "text_encoder": asdict(TextEncoderSpec("random", "0", embed_dim, "0" * 64)),
            "image": {"size": 32, "fit": "crop", "mean": list(mean), "std": list(std)},
            "config": {"global_batch_size": 4},
        },
        keep_last=1,
        is_best=True,
    )


@pytest.fixture
def shards(tmp_path):
    return make_shard_set(tmp_path / "val", 12, num_captions=[1 + n % 3 for n in range(12)], split="val")


@pytest.fixture
def embedded(monkeypatch):
    """Texts embedded by a stand-in for the frozen encoder."""

    def embed(texts):
        rows = np.stack([np.random.default_rng([*text.encode()]).standard_normal(8) for text in texts])
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    monkeypatch.setattr(eval.run, "text_embedder", lambda spec, choice, device: embed)


def config_of(run_dir, shards, out, **more):
    return EvalConfig(checkpoint=run_dir, shards=(shards,), out=out, num_workers=0, device="cpu", **more)


def test_an_evaluation_writes_results_pictures_and_one_report(run_dir, shards, tmp_path, embedded):
    out = tmp_path / "out"
    config = config_of(run_dir, shards, out, queries=("sport",), classes=("person", "grand_piano"), num_examples=3)
    results = evaluate(config, QUIET)
    written = json.loads((out / "results.json").read_text())
    assert written == results
    features = load_features(out / "features.safetensors", encoder=results["encoder"]).features
    assert {d: results[d] for d in ("image_to_text", "text_to_image")} == summarise(retrieval_ranks(features))
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


def test_labelled_shards_without_labels_are_refused(run_dir, shards, tmp_path):
    with pytest.raises(DataError, match="has no class labels"):
        evaluate(config_of(run_dir, shards, tmp_path / "out", labelled_shards=(shards,)), QUIET)


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
    import torch

    write_run(tmp_path / "run")
    path = next((tmp_path / "run" / "checkpoints").iterdir())
    from trainer.checkpoint.folder import load_checkpoint

    whole = load_checkpoint(path)
    identity = {**whole.identity, "model": {**whole.identity["model"], "hidden_dim": 24}}
    save_checkpoint(
        tmp_path / "bad" / "checkpoints", model_state=whole.model_state, optimizer_state={}, state={"step": 4},
        identity=identity, keep_last=1, is_best=True,
    )  # fmt: skip
    with pytest.raises(CheckpointError, match="its weights do not fit the model it names"):
        load_encoder(tmp_path / "bad", torch.device("cpu"))


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"protocols": "coco5k"}, "unknown protocol 'coco5k'"),
        ({"templates": "a photo"}, "needs exactly one {}"),
        ({"querys": "sport"}, "unknown key 'querys' in EvalConfig. Did you mean 'queries'?"),
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
    import torch

    spec = TextEncoderSpec("minilm", "other", 384, "1" * 64)
    with pytest.raises(
        WeightsError, match=r"minilm \(53aa.*is found, the checkpoint was trained against minilm \(other"
    ):
        text_embedder(spec, Choice("minilm"), torch.device("cpu"))


def test_the_packaged_text_encoder_embeds_queries():
    import torch

    from core.text_encoders import TEXT_ENCODERS

    spec = TEXT_ENCODERS["minilm"]().spec
    dog, puppy, bank = text_embedder(spec, None, torch.device("cpu"))(["a dog", "a puppy", "a bank statement"])
    assert dog.shape == (384,)
    assert dog @ puppy > 0.6 > dog @ bank
