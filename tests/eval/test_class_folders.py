"""Captions made from class names: every sample of a class is right, in recall, masks, validation and zero-shot."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import class_folders
import fake_encoder
import gloo
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from class_folders import CLASSES, build_folders
from column_folders import add_column
from column_sets import build_set
from fake_encoder import FakeEncoder
from pixel_model import PixelEncoder, PixelModel, normalize, pixels_of
from saved_runs import change_state
from shard_sets import make_shard_set
from training_runs import SMALL_TOWER, last_checkpoint, recipe, train_worker

from core.class_captions import answer_ids
from core.columns import column_url
from core.config import Choice
from core.errors import ConfigError, DataError, ManifestError
from core.manifest import load_manifest, save_manifest
from core.shard_set import ShardSet
from core.storage import local
from core.text_encoders import TEXT_ENCODERS
from eval.baseline import gains_over, save_ranks
from eval.class_prompts import NamedClasses, class_prompts, named_classes
from eval.evaluations.retrieval import evaluate_retrieval, recall_intervals
from eval.features import extract
from eval.labels import Labels
from eval.metrics import FeatureSet, Ranks, RightAnswers
from eval.ranks import retrieval_ranks
from eval.right_answers import captions_of, with_class_answers, with_equal_captions
from eval.validation import make_validation
from trainer.config import DataConfig, TrainConfig
from trainer.data.loader import EvalLoader, TrainLoader
from trainer.run.folder import read_events

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def built(tmp_path_factory):
    """Class folders, and pictures with labels and captions of their own."""
    folder = tmp_path_factory.mktemp("sets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TEXT_ENCODERS, "fake", FakeEncoder)
        build_folders(folder), build_set(folder, folder / "cache")
        yield folder


@pytest.fixture
def folders(built, tmp_path):
    return str(shutil.copytree(built / "folders", tmp_path / "folders"))


@pytest.fixture
def captioned(built, tmp_path):
    return str(shutil.copytree(built / "built", tmp_path / "captioned"))


def labels_in(url):
    shard_set = ShardSet.open(url)
    return np.array([CLASSES.index(shard_set.info(s)["label"]) for s in range(len(shard_set))])


def as_before(url):
    """The set as it was built when manifests did not say where captions come from."""
    save_manifest(replace(load_manifest(url), captions=""), url)
    return url


@pytest.mark.parametrize("age", [lambda url: url, as_before], ids=["new", "old"])
def test_samples_of_a_class_have_one_answer_id_where_captions_are_made_from_its_name(folders, age):
    shard_set = ShardSet.open(age(folders))
    ids, labels = answer_ids(shard_set, np.arange(12)), labels_in(folders)
    assert np.array_equal(ids[:, None] == ids, labels[:, None] == labels)
    assert len(np.unique(shard_set.image_ids(np.arange(12)))) == 12


def test_captions_of_their_own_keep_their_images_ids(captioned):
    for own in (captioned, as_before(captioned)):
        shard_set = ShardSet.open(own)
        assert shard_set.classes and not shard_set.class_captions
        assert (answer_ids(shard_set, np.arange(20)) == shard_set.image_ids(np.arange(20))).all()


def test_classes_of_one_name_are_one_in_several_sets_beside_captions(tmp_path, folders, captioned):
    other = build_folders(tmp_path, "other", per_class=2, templates=("a drawing of a {}.",))
    shard_set = ShardSet.open([folders, captioned, other])
    samples = np.random.default_rng(0).permutation(len(shard_set))
    ids = answer_ids(shard_set, samples)
    classes = np.concatenate([labels_in(folders), 100 + np.arange(20), labels_in(other)])[samples]
    assert np.array_equal(ids[:, None] == ids, classes[:, None] == classes)


def test_a_set_whose_labels_are_gone_says_how_to_make_them(folders):
    for path in sorted(local(column_url(folders, "labels")).iterdir()):
        path.unlink()
    with pytest.raises(ManifestError, match=r"no column 'labels'.* `shardclip column labels"):
        TrainLoader(ShardSet.open(folders), global_batch_size=4)


def test_a_batch_relates_samples_by_class_where_captions_are_compared_and_by_image_elsewhere(folders):
    shard_set, labels = ShardSet.open(folders), labels_in(folders)
    for columns, is_related in (({"text": ""}, True), ({}, False)):
        (batch,) = TrainLoader(shard_set, global_batch_size=12, columns=columns).epoch(0)
        ids, own = batch.column("image_id").numpy(), labels[batch.samples.numpy()]
        related = own[:, None] == own if is_related else np.eye(12, dtype=bool)
        assert np.array_equal(ids[:, None] == ids, related)


def test_objectives_leave_out_other_samples_of_the_class(folders):
    config = TrainConfig(run_dir=Path("r"), data=DataConfig((folders,)), global_batch_size=12)
    (batch,) = TrainLoader(ShardSet.open(folders), global_batch_size=12).epoch(0)
    labels = labels_in(folders)[batch.samples.numpy()]
    from trainer.objectives.engine import blocked_loss
    from trainer.objectives.objective import Rows

    images = torch.nn.functional.normalize(batch.column("text").float(), dim=1)  # a perfect classifier
    rows = {"image": images, "text": images, "image_id": batch.column("image_id")}
    loss = blocked_loss(config.build_objective(), Rows(rows, rows, 0), {"scale": torch.tensor(10.0)}, {})
    logits = 10 * images @ images.T
    keep = torch.from_numpy(labels[:, None] != labels) | torch.eye(12, dtype=torch.bool)
    expected = -logits.masked_fill(~keep, -torch.inf).log_softmax(1).diagonal().mean()
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


class PerfectEncoder(PixelEncoder):
    """Gives every picture of the set the embedding of its class's caption: pictures are known by their mean."""

    def __init__(self, url):
        super().__init__()
        shard_set = ShardSet.open(url)
        (batch,) = EvalLoader(shard_set, batch_size=len(shard_set))
        self.means = normalize(batch.images).mean((1, 2, 3))
        self.known = torch.from_numpy(np.stack([shard_set.embeddings(s)[0] for s in range(len(shard_set))])).float()

    def image_features(self, images):
        nearest = (images.mean((1, 2, 3))[:, None] - self.means).abs().argmin(1)
        return torch.nn.functional.normalize(self.known[nearest], dim=1)


def validate(url, run_dir, perfect=True, **settings):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TEXT_ENCODERS, "fake", FakeEncoder)  # also in another process
        return validated(url, run_dir, perfect, settings)


def validated(url, run_dir, perfect, settings):
    config = TrainConfig(
        run_dir=Path(run_dir), data=DataConfig((url,), (url,), num_workers=0), global_batch_size=6, eval_batch_size=4,
        **settings,
    )  # fmt: skip
    sets = ShardSet.open(url), ShardSet.open(url)
    measure = make_validation(*sets, normalize, config.build_objective(), config, Accelerator(cpu=True))
    model = PixelModel()
    if perfect:
        model.encoder = PerfectEncoder(url)
    found = measure(model, 0)
    return dict(found.metrics), found.score


def test_a_perfect_classifier_has_full_recall_and_accuracy_while_training(tmp_path, folders):
    metrics, score = validate(folders, tmp_path / "run", best_by="val/zero_shot/accuracy")
    recalls = {name: value for name, value in metrics.items() if "recall" in name or "map" in name}
    assert len(recalls) == 8 and set(recalls.values()) == {1}
    assert metrics["val/zero_shot/accuracy"] == metrics["val/zero_shot/mean_per_class"] == score == 1
    assert not [name for name in metrics if "knn" in name]


def validate_listed(url, run_dir):
    listed = (Choice("same_class", {"num_lists": 5}), Choice("linear_probe", {"num_folds": 2}))
    return validate(url, run_dir, evaluations=listed)


def test_listed_evaluations_are_followed_and_their_lists_kept(tmp_path, folders):
    metrics, _ = validate_listed(folders, tmp_path / "run")
    assert metrics["val/same_class/precision@1"] == metrics["val/linear_probe/accuracy"] == 1
    (lists,) = (tmp_path / "run/evaluations").glob("step-00000000/*.json")
    queries = json.loads(lists.read_text())["queries"]
    assert lists.name == "same_class.json" and len(queries) == 5
    named = [(query, labels_in(folders)[query["sample"]]) for query in queries]
    assert all(query["class"] == CLASSES[label] and query["answers"][0]["is_right"] for query, label in named)
    drawn = {path.name for path in (tmp_path / "run/pictures").glob("val-*by_class*")}
    assert drawn == {f"val-{name}.by_class-00000000.jpg" for name in ("same_class", "linear_probe")}
    together = gloo.run(2, validate_listed, folders, str(tmp_path / "group"))
    assert [found for found, _ in together] == [metrics] * 2


def test_processes_agree_on_class_folders(tmp_path, folders):
    alone = validate(folders, tmp_path / "alone", perfect=False)
    assert alone[0]["val/zero_shot/accuracy"] < 1  # or nothing would be compared
    for world_size in (2, 4):
        for found in gloo.run(world_size, validate, folders, str(tmp_path / "group"), False):
            assert found == alone


@pytest.mark.parametrize(("was", "is_anew"), [("own captions", True), ("class names", False)])
def test_a_run_that_goes_on_by_other_right_answers_begins_its_best_score_anew(tmp_path, folders, was, is_anew):
    sizes = {"data": {"train": folders, "val": folders}, "global_batch_size": 6, "epochs": 6, "model": SMALL_TOWER}
    values = recipe(tmp_path, **sizes)
    assert gloo.run(1, train_worker, values, 4) == [75]
    assert last_checkpoint(tmp_path / "run").state["answers_by"] == "class names"
    change_state(tmp_path / "run", lambda state: state.update(answers_by=was, best_score=2.0))  # out of reach
    assert gloo.run(1, train_worker, values) == [0]
    noted = [(event["was"], event["now"]) for event in read_events(tmp_path / "run")
             if event["event"] == "answers changed"]  # fmt: skip
    assert noted == ([("own captions", "class names")] if is_anew else [])
    assert (last_checkpoint(tmp_path / "run").state["best_score"] < 2.0) is is_anew


def test_labels_beside_captions_are_followed_by_their_names_too(tmp_path, captioned):
    metrics, _ = validate(captioned, tmp_path / "run", perfect=False)
    rows, labels = pixels_of(captioned).features, ShardSet.open(captioned)
    classes = labels.classes
    names = fake_encoder.expected([f"a photo of a {name}." for name in classes]).astype(np.float32)
    own = np.array([classes.index(labels.info(s)["label"]) for s in range(len(labels))])
    similarity = rows.images @ (names / np.linalg.norm(names, axis=1, keepdims=True)).T
    assert metrics["val/zero_shot/accuracy"] == pytest.approx(np.mean(similarity.argmax(1) == own))
    assert evaluate_retrieval(rows, retrieval_ranks)["protocol"].startswith("full gallery")  # captions are its own


def test_without_the_frozen_encoder_it_is_said_and_best_by_refused(tmp_path, capsys):
    url = make_shard_set(tmp_path / "val", 12)
    add_column(url, "labels", np.arange(12, dtype="<i4") % 2, classes=("cat", "dog"))
    metrics, _ = validate(url, tmp_path / "run", perfect=False)
    assert "val/zero_shot/accuracy" not in metrics
    assert "zero-shot accuracy is not followed: random" in capsys.readouterr().out
    with pytest.raises(ValueError, match="cannot be loaded to embed class names"):
        validate(url, tmp_path / "run", perfect=False, best_by="val/zero_shot/accuracy")
    with pytest.raises(ConfigError, match="must have class labels"):
        validate(make_shard_set(tmp_path / "b", 4), tmp_path / "c", best_by="val/zero_shot/accuracy")


def extracted_from(url):
    shard_set = ShardSet.open(url)
    loader = EvalLoader(shard_set, batch_size=50)
    return extract(PixelEncoder(), normalize, shard_set, loader, logit_scale=1.0, device=CPU), shard_set


def test_class_folders_have_a_protocol_of_their_own(folders):
    found = with_class_answers(*extracted_from(folders), is_trained=False)
    said = evaluate_retrieval(found.features, retrieval_ranks)["protocol"]
    assert said == "class names: 12 images x 12 captions, a caption is right for every image that it fits"
    with pytest.raises(ValueError, match="go by class names. Use protocols: full"):
        evaluate_retrieval(large(found).features, retrieval_ranks, "coco-5k")


def large(found):
    """The same features over and over, as many as the COCO protocols ask for."""
    features = found.features
    rows = np.arange(5004) % 12
    answer = features.more_right.holds[rows]
    right = replace(features.more_right, says=answer, images=np.arange(5004), holds=answer)
    texts = features.texts[rows]
    of_image = np.arange(5004)
    return replace(found, features=type(features)(features.images[rows], texts, of_image, right))


def test_a_trained_tower_s_rounding_does_not_part_equal_captions(folders):
    found, shard_set = extracted_from(folders)
    noise = 1e-4 * np.random.default_rng(0).standard_normal(found.features.texts.shape).astype(np.float32)
    texts = found.features.texts + noise
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    rounded = replace(found, features=replace(found.features, texts=texts))
    alike = with_class_answers(rounded, shard_set, is_trained=True).features.texts
    assert len(np.unique(alike, axis=0)) == 3


def test_equal_captions_are_right_for_each_other_only_where_asked_for(tmp_path):
    url = make_shard_set(tmp_path / "val", 8, num_captions=2)
    found, shard_set = extracted_from(url)
    captions = captions_of(found, shard_set)
    assert len(set(captions)) == 16
    captions[5], captions[12] = captions[0], captions[0]  # of images 2 and 6, as one of image 0
    features = with_equal_captions(found, captions).features
    is_right = np.array([[bool(features.right.are_right(i, np.array([t]))[0]) for t in range(16)] for i in range(8)])
    owner = found.features.image_of_text
    expected = np.array([[any(owner[u] == i and captions[u] == captions[t] for u in range(16)) for t in range(16)]
                         for i in range(8)])  # fmt: skip
    assert np.array_equal(is_right, expected) and is_right.sum() == 16 + 6
    assert evaluate_retrieval(features, retrieval_ranks)["protocol"].startswith("equal captions: 8 images x 16")


def few_classes(kind="class names", templates=1):
    """20 classes of 50 pictures; every caption of a class is one query, which every second class answers at once."""
    label = np.arange(1000) % 20
    image_of_text = np.repeat(np.arange(1000), templates)
    says = label[image_of_text] * templates + np.tile(np.arange(templates), 1000)
    images, holds = np.repeat(np.arange(1000), templates), says
    rows = np.eye(20, dtype=np.float32)
    right = RightAnswers(kind, says, images, holds)
    features = FeatureSet(rows[label], rows[label[image_of_text]], image_of_text, right)
    ranks = np.where(label[image_of_text] % 2, 20, 1)
    return features, Ranks(np.ones(1000), ranks, np.ones(1000), np.ones(len(ranks)))


@pytest.mark.parametrize(("kind", "templates"), [("class names", 1), ("class names, equal captions", 2)])
def test_intervals_of_class_names_are_drawn_by_class(tmp_path, kind, templates):
    features, ranks = few_classes(kind, templates)
    labels = (np.arange(1000) % 20)[features.image_of_text]
    assert np.array_equal(features.text_groups[:, None] == features.text_groups, labels[:, None] == labels)
    for interval in (found := recall_intervals(features, ranks)["text_to_image"]).values():
        shares = np.random.default_rng(1).binomial(20, 0.5, 4000) / 20  # what 20 classes, half of them right, come to
        low, high = np.quantile(shares, (0.025, 0.975))
        assert interval["low"] == pytest.approx(low, abs=0.051) and interval["high"] == pytest.approx(high, abs=0.051)
    save_ranks(ranks, features, tmp_path / "ranks.safetensors")
    better = replace(ranks, text_to_image=np.ones_like(ranks.text_to_image))
    gain = gains_over(tmp_path, better, features)["text_to_image"]["1"]
    assert gain["low"] == pytest.approx(found["1"]["low"], abs=0.051) and gain["high"] - gain["low"] > 0.3


def test_intervals_of_equal_captions_are_drawn_by_image():
    features, _ = few_classes("equal captions")
    assert np.array_equal(features.text_groups, features.image_of_text)


def features_by_name(names):
    rows = fake_encoder.expected([f"a photo of a {name}." for name in names]).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_labels_of_another_column_are_not_taken_for_those_in_the_captions(folders):
    fine = ("sparrow", "beetle")
    add_column(folders, "labels.fine", np.arange(12, dtype="<i4") % 2, classes=fine)
    shard_set = ShardSet.open(folders)
    named = named_classes(shard_set, {"label": "labels.fine"})
    assert named.labels.classes == fine and not named.in_captions
    prompts = class_prompts(shard_set, shard_set, named, False, CPU)
    assert prompts.features == pytest.approx(features_by_name(fine), abs=1e-6)
    assert named_classes(shard_set, {}).in_captions and named_classes(shard_set, {"label": "labels"}).in_captions


def test_classes_without_samples_stay_in_the_list(tmp_path, folders, monkeypatch):
    monkeypatch.setattr(class_folders, "CLASSES", ("cat", "dog"))
    two, three = ShardSet.open(build_folders(tmp_path, "two", templates=("the {}",))), ShardSet.open(folders)
    numbers = Labels(np.arange(8) % 2, CLASSES)
    prompts = class_prompts(two, three, NamedClasses(numbers, True), False, CPU)
    own = fake_encoder.expected(["the cat", "the dog", "a photo of a goldfish."]).astype(np.float32)
    assert prompts.labels.classes == CLASSES
    assert prompts.features == pytest.approx(own / np.linalg.norm(own, axis=1, keepdims=True), abs=1e-6)
    nowhere = class_prompts(two, two, NamedClasses(numbers, True), False, CPU)  # then all by one template
    assert nowhere.features == pytest.approx(features_by_name(CLASSES), abs=1e-6)


def test_zero_shot_needs_labels_in_every_set_and_reads_no_json_without(tmp_path, captioned, monkeypatch):
    other = make_shard_set(tmp_path / "adopted", 6)
    save_manifest(replace(load_manifest(other), text_encoder=fake_encoder.SPEC), other)
    monkeypatch.setattr(ShardSet, "info", lambda self, sample: {"label": 7})  # that of a foreign set
    shard_set = ShardSet.open([captioned, other])
    assert shard_set.classes and named_classes(shard_set, {}) is None


def test_labels_that_cannot_be_read_do_not_end_a_run_that_compares_captions(tmp_path, captioned, capsys):
    for path in sorted(local(column_url(captioned, "labels")).iterdir()):
        path.unlink()
    save_manifest(replace(load_manifest(captioned), classes=("cow",)), captioned)
    metrics, _ = validate(captioned, tmp_path / "run", perfect=False)
    assert "val/text_to_image/recall@1" in metrics and "val/zero_shot/accuracy" not in metrics
    assert "zero-shot accuracy is not followed: " in (said := capsys.readouterr().out) and "none of the set's" in said
    with pytest.raises(DataError, match="none of the set's classes"):
        validate(captioned, tmp_path / "run", perfect=False, best_by="val/zero_shot/accuracy")
