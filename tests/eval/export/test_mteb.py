"""An exported encoder loads again to the bit, and mteb measures with it what `shardclip eval` measures.

What mteb itself does needs mteb (`pip install 'shardclip[mteb]'`, or `make peers`), and skips without it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluated_runs import config_of
from photo_folders import picture, quick_recipe
from PIL import Image
from rich.console import Console
from saved_runs import write_run

import shardclip
from core.config import Choice
from core.errors import CheckpointError, ConfigError, WeightsError
from core.parts import build
from core.text_encoders import TEXT_ENCODERS
from eval.evaluate import evaluate
from eval.export.export import export
from shard_builder.build import build_shards
from shard_builder.config import ImageConfig
from trainer.models.texts.minilm import MiniLMText
from trainer.telemetry.names import DIRECTIONS, RECALL_KS, recall

QUIET = Console(quiet=True)
NO_MTEB = "mteb is not installed: pip install 'shardclip[mteb]', or make peers"
ROUNDING = 5.1e-6  # mteb gives five digits
TEXTS = ["a dog on a beach", "two red cars", ""]
ANIMALS, PLACES = ("dog", "cat", "horse", "sheep", "bird", "cow", "goat"), ("beach", "hill", "road", "lake", "roof")


def photographs(count: int) -> list[np.ndarray]:
    """Higher than wide, wider than high, and square."""
    draw = np.random.default_rng(0)
    return [draw.integers(0, 256, (40 + 9 * (n % 3), 49, 3), dtype=np.uint8) for n in range(count)]


@pytest.mark.parametrize(("form", "fit"), [("safetensors", "crop"), ("mteb", "squash"), ("mteb", "pad")])
def test_an_exported_encoder_is_loaded_as_its_run_is(tmp_path: Path, form: str, fit: str) -> None:
    spec = build(TEXT_ENCODERS, Choice("minilm"), "text_encoder").spec
    run = write_run(tmp_path / "run", text_encoder=spec, size=24, stored=32, fit=fit, objective="siglip")
    out = export(run, form, tmp_path / "out", QUIET)
    of_run, found = (shardclip.load(place, device="cpu") for place in (run, out))
    assert found.path == out and found.embed_dim == of_run.embed_dim and found.logit_scale == of_run.logit_scale
    np.testing.assert_array_equal(found.encode_image(photographs(5)), of_run.encode_image(photographs(5)))
    np.testing.assert_array_equal(found.encode_text(TEXTS), of_run.encode_text(TEXTS))


def test_a_text_tower_that_was_trained_leaves_too(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", text=MiniLMText(tokens="tokens.minilm", train="head"))
    of_run, found = (shardclip.load(at, device="cpu") for at in (run, export(run, "mteb", tmp_path / "out", QUIET)))
    vectors = found.encode_text(TEXTS)
    assert vectors.shape == (3, 8)
    np.testing.assert_array_equal(vectors, of_run.encode_text(TEXTS))


def test_what_cannot_be_loaded_again_says_why(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tower="shufflenet_v2_x0_5")
    with pytest.raises(CheckpointError, match="was exported to torchvision, and its README.md says how .* --to mteb"):
        shardclip.load(export(run, "torchvision", tmp_path / "other", QUIET))
    out = export(run, "mteb", tmp_path / "out", QUIET)
    facts = json.loads((out / "encoder.json").read_text())
    (out / "encoder.json").write_text(json.dumps({**facts, "model": {**facts["model"], "hidden_dim": 17}}))
    with pytest.raises(
        CheckpointError, match="its weights do not fit the model that encoder.json names: size mismatch"
    ):
        shardclip.load(out)
    for damaged in ("{}", "[]", '{"form": '):
        (out / "encoder.json").write_text(damaged)
        with pytest.raises(CheckpointError, match=r"encoder.json is damaged .* Export again") as raised:
            shardclip.load(out)
        assert "\n" not in str(raised.value)
    (out / "encoder.json").write_text(json.dumps(facts))
    (out / "encoder.safetensors").write_bytes(b"damaged")
    with pytest.raises(WeightsError, match="encoder.safetensors is damaged"):
        shardclip.load(out)


def test_without_mteb_one_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "mteb"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mteb", None)
    out = export(write_run(tmp_path / "run"), "mteb", tmp_path / "out", QUIET)  # which asks for nothing of mteb
    with pytest.raises(ConfigError, match=r"needs mteb, which is not installed: run `pip install 'shardclip\[mteb\]'`"):
        shardclip.load(out, device="cpu").mteb_model("mine")


def test_mteb_measures_the_recalls_of_results_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way: photographs and their one to four captions, a set, a run, its evaluation and its export."""
    pytest.importorskip("mteb", reason=NO_MTEB)
    from mteb_tasks import hit_rates

    lines = []
    for n in range(35):
        (tmp_path / f"{n}.jpg").write_bytes(picture(n, (60 + n % 7, 45 + n % 5)))
        captions = [f"{k} of a {ANIMALS[n % 7]} on the {PLACES[n % 5]}" for k in ("photo", "view", "look", "side")]
        lines.append({"image": f"{n}.jpg", "captions": captions[: 1 + n % 4], "split": "train"})
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    photos, cache, encoder = tmp_path / "captions.jsonl", tmp_path / "cache", Choice("minilm")
    image = ImageConfig(size=32, fit="pad")
    build_shards(quick_recipe(photos, tmp_path / "set", cache, image=image, text_encoder=encoder), QUIET)
    spec = build(TEXT_ENCODERS, encoder, "text_encoder").spec
    run = write_run(tmp_path / "run", text_encoder=spec, size=24, stored=32, fit="pad")
    evaluate(config_of(run, str(tmp_path / "set"), tmp_path / "out"), QUIET)
    ours = json.loads((tmp_path / "out" / "results.json").read_text())

    samples = list(shardclip.open_shards(tmp_path / "set"))
    right = np.repeat(np.eye(35, dtype=bool), [len(sample.captions) for sample in samples], axis=1)
    images, texts = [sample.image for sample in samples], [text for sample in samples for text in sample.captions]
    model = shardclip.load(export(run, "mteb", tmp_path / "mteb", QUIET), device="cpu").mteb_model("mine")
    found = hit_rates(model, images, texts, right)
    for direction in DIRECTIONS:
        for k in RECALL_KS:
            assert found[direction][recall(k)] == pytest.approx(ours[direction][recall(k)], abs=ROUNDING)
        assert 0 < ours[direction][recall(RECALL_KS[-1])] < 1  # where nothing is found, or all, everyone agrees


@pytest.mark.parametrize(
    "task",
    [
        "MockImageClassificationTask",
        "MockPairImageClassificationTask",
        "MockMultiChoiceTask",
        "MockZeroShotClassificationTask",
    ],
)
def test_mteb_runs_tasks_of_other_kinds(tmp_path: Path, task: str) -> None:
    """By its own tiny tasks: of pictures, pairs of them, pictures with texts, and classes that are texts."""
    mocks = pytest.importorskip("mteb.mocks.mock_tasks", reason=NO_MTEB)
    import mteb

    spec = build(TEXT_ENCODERS, Choice("minilm"), "text_encoder").spec
    model = shardclip.load(write_run(tmp_path / "run", text_encoder=spec), device="cpu").mteb_model("mine")
    done = mteb.evaluate(model, getattr(mocks, task)(), cache=None, show_progress_bar=False, co2_tracker=False)
    assert not done.exceptions and 0 <= done.task_results[0].get_score() <= 1


def test_what_mteb_is_told_of_it(tmp_path: Path) -> None:
    pytest.importorskip("mteb", reason=NO_MTEB)
    from mteb.models import EncoderProtocol

    run = write_run(tmp_path / "run")
    encoder = shardclip.load(run, device="cpu")
    model = encoder.mteb_model("mine")
    meta = model.mteb_model_meta
    facts = json.loads((export(run, "mteb", tmp_path / "out", QUIET) / "encoder.json").read_text())
    assert isinstance(model, EncoderProtocol)
    assert (meta.name, meta.revision, meta.embed_dim) == ("shardclip/mine", facts["fingerprint"], 8)
    assert meta.modalities == ["image", "text"] and encoder.mteb_model("us/mine").mteb_model_meta.name == "us/mine"
    assert meta.memory_usage_mb == pytest.approx(4 * meta.n_parameters / 2**20) and meta.n_parameters > 100
    vectors = encoder.encode_image(photographs(3))
    np.testing.assert_allclose(np.asarray(model.similarity(vectors, vectors[:2])), vectors @ vectors[:2].T, atol=1e-6)
    np.testing.assert_allclose(np.asarray(model.similarity_pairwise(vectors, vectors)), 1, atol=1e-6)


def test_inputs_of_both_kinds_are_the_sum_of_their_vectors(tmp_path: Path) -> None:
    pytest.importorskip("mteb", reason=NO_MTEB)
    spec = build(TEXT_ENCODERS, Choice("minilm"), "text_encoder").spec
    encoder = shardclip.load(write_run(tmp_path / "run", text_encoder=spec), device="cpu")
    model, images = encoder.mteb_model("mine"), [Image.fromarray(array) for array in photographs(3)]
    of_images, of_texts = encoder.encode_image(photographs(3)), encoder.encode_text(TEXTS)

    def encoded(*batches: dict[str, Any], **asked: Any) -> np.ndarray:
        return model.encode(batches, task_metadata=None, hf_split="test", hf_subset="default", **asked)

    np.testing.assert_allclose(encoded({"image": images[:2]}, {"image": images[2:]}), of_images, atol=1e-6)
    np.testing.assert_allclose(encoded({"text": TEXTS[:1]}, {"text": TEXTS[1:]}), of_texts, atol=1e-6)
    both = of_images + of_texts
    expected = both / np.linalg.norm(both, axis=1, keepdims=True)
    np.testing.assert_allclose(encoded({"image": images, "text": TEXTS}, precision=None), expected, atol=1e-6)
    with pytest.raises(ConfigError, match="the inputs hold audio; this encoder takes image and text"):
        encoded({"audio": [b""]})
    with pytest.raises(ConfigError, match="precision='int8', this encoder gives float32. Leave it out"):
        encoded({"image": images}, precision="int8")


def test_an_encoder_of_pictures_alone_is_asked_for_no_texts(tmp_path: Path) -> None:
    pytest.importorskip("mteb", reason=NO_MTEB)
    from mteb_tasks import hit_rates

    out = export(write_run(tmp_path / "run", objective="nt_xent"), "mteb", tmp_path / "out", QUIET)
    model = shardclip.load(out, device="cpu").mteb_model("alone")
    assert model.mteb_model_meta.modalities == ["image"]
    images = [Image.fromarray(array) for array in photographs(3)]
    assert model.encode([{"image": images}]).shape == (3, 16)
    with pytest.raises(ConfigError, match="trained without captions, so it encodes no text"):
        model.encode([{"image": images, "text": TEXTS}])
    with pytest.raises(ValueError, match=r"supports \['image'\], but none overlap"):  # of mteb, before it loads a task
        hit_rates(model, images, TEXTS, np.eye(3, dtype=bool))
