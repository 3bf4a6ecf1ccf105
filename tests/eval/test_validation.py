"""What training gets from a validation: the same figures on every rank, a score, and a picture in the run folder."""

from pathlib import Path

import gloo
import numpy as np
import pytest
from accelerate import Accelerator
from column_folders import add_column
from pixel_model import PixelModel, normalize, pixels_of
from shard_sets import make_shard_set

from core.config import Choice
from core.errors import ConfigError, DataError
from core.shard_set import ShardSet
from eval.evaluations.evaluation import Subject
from eval.evaluations.knn import knn_is_right
from eval.features import Pictures
from eval.gallery import GallerySource, joint_classes
from eval.known import known_of
from eval.labels import labels_of
from eval.metrics import summarise
from eval.ranks import retrieval_ranks
from eval.validation import Validating, make_validation
from trainer.config import DataConfig, TrainConfig


def validate(val, train, run_dir, times=1, **settings):
    config = TrainConfig(
        run_dir=Path(run_dir),
        data=DataConfig((train,), (val,), num_workers=0),
        global_batch_size=6,
        eval_batch_size=4,
        **settings,
    )
    sets = ShardSet.open(val), ShardSet.open(train)
    validation = make_validation(*sets, normalize, config.build_objective(), config, Accelerator(cpu=True))
    for step in range(times):
        measured = validation(PixelModel(), step, None)
    return dict(measured.metrics), measured.score, [str(path) for _, path, _ in measured.pictures]


def labelled(folder, count, classes=("cat", "dog"), **options):
    """A set whose classes are drawn at random, the last sample without one."""
    url = make_shard_set(folder, count, num_captions=1, **options)
    labels = np.random.default_rng(count).integers(0, len(classes), count).astype("<i4")
    labels[-1] = -1
    add_column(url, "labels", labels, classes=classes)
    return url, labels


CATTLE = ("cat", "dog", "cow")
PICTURES_ALONE = {"objective": Choice("nt_xent")}


def test_a_validation_measures_what_an_evaluation_would(tmp_path):
    url = make_shard_set(tmp_path / "val", 11, num_captions=3)
    metrics, score, pictures = validate(url, url, tmp_path / "run", times=2)
    recalls = []
    for direction, figures in summarise(retrieval_ranks(pixels_of(url).features)).items():
        for name, value in figures.items():
            assert metrics[f"val/{direction}/{name}"] == pytest.approx(value), name
        recalls += [figures[f"recall@{k}"] for k in (1, 5, 10)]
    assert score == pytest.approx(np.mean(recalls))
    assert metrics["val/loss"] > 0
    assert not [name for name in metrics if "knn" in name]
    assert pictures == [str(tmp_path / "run" / "pictures" / "val-retrieval-00000001.jpg")]
    assert Path(pictures[0]).stat().st_size > 5000


def test_two_ranks_get_the_figures_of_one(tmp_path):
    url = make_shard_set(tmp_path / "val", 7, num_captions=[1, 2, 3, 4, 1, 2, 3])
    alone = validate(url, url, str(tmp_path / "alone"))
    for metrics, score, _ in gloo.run(2, validate, url, url, str(tmp_path / "both")):
        assert score == alone[1]
        assert metrics == alone[0]  # to the bit: the same blocks are multiplied, and added up in the same order


def test_without_captions_the_training_set_is_the_gallery_of_the_validation_set(tmp_path):
    train, train_labels = labelled(tmp_path / "train", 30, classes=("dog", "cat", "cow"), seed=1, source="train")
    val, labels = labelled(tmp_path / "val", 13)
    metrics, score, pictures = validate(val, train, tmp_path / "run", **PICTURES_ALONE)
    gallery, queries = pixels_of(train).features.images[:-1], pixels_of(val).features.images[:-1]
    in_train = np.array([1, 0])[labels[:-1]]  # the training set names its classes in another order
    for name, k in (("val/knn/accuracy", 20), ("val/knn1/accuracy", 1)):
        assert metrics[name] == pytest.approx(knn_is_right(queries, in_train, gallery, train_labels[:-1], k=k).mean())
    assert set(metrics) == {"val/knn/accuracy", "val/knn1/accuracy"} and score == metrics["val/knn/accuracy"]
    assert pictures == [str(tmp_path / "run" / "pictures" / "val-neighbours-00000000.jpg")]
    assert Path(pictures[0]).stat().st_size > 5000


def test_without_labels_in_training_each_validation_picture_is_left_out_of_its_own_gallery(tmp_path):
    train, (val, labels) = make_shard_set(tmp_path / "train", 8), labelled(tmp_path / "val", 13)
    metrics, _, pictures = validate(val, train, tmp_path / "run", **PICTURES_ALONE)
    rows = pixels_of(val).features.images[:-1]
    expected = knn_is_right(rows, labels[:-1], rows, labels[:-1], k=1, leave_one_out=True).mean()
    assert metrics["val/knn1/accuracy"] == pytest.approx(expected) and Path(pictures[0]).exists()


def validate_pictures_alone(val, train, run_dir):
    return validate(val, train, run_dir, **PICTURES_ALONE)


def test_two_ranks_agree_without_captions(tmp_path):
    (train, _), (val, _) = labelled(tmp_path / "train", 21, seed=1), labelled(tmp_path / "val", 9)
    alone = validate(val, train, str(tmp_path / "alone"), **PICTURES_ALONE)
    for found in gloo.run(2, validate_pictures_alone, val, train, str(tmp_path / "both")):
        assert found[0] == pytest.approx(alone[0])
        assert found[1] == pytest.approx(alone[1])


def test_captions_and_classes_are_both_measured_where_the_best_is_named_by_classes(tmp_path):
    url, _ = labelled(tmp_path / "val", 12)
    metrics, score, _ = validate(url, url, tmp_path / "run", best_by="val/knn1/accuracy")
    assert score == metrics["val/knn1/accuracy"] and "val/image_to_text/recall@1" in metrics and "val/loss" in metrics
    metrics, score, _ = validate(url, url, tmp_path / "run", best_by="val/loss")
    assert score == -metrics["val/loss"] and "val/knn/accuracy" not in metrics


def test_a_gallery_is_read_where_something_due_looks_there(tmp_path, monkeypatch):
    (val, _), (train, _) = labelled(tmp_path / "val", 12), labelled(tmp_path / "train", 20, seed=1, source="train")
    config = TrainConfig(
        run_dir=tmp_path / "run", data=DataConfig((train,), (val,), num_workers=0), global_batch_size=6,
        evaluations=(Choice("same_class", {"every": 3}), Choice("modality_gap")),
    )  # fmt: skip
    sets = ShardSet.open(val), ShardSet.open(train)
    validation = make_validation(*sets, normalize, config.build_objective(), config, Accelerator(cpu=True))
    read, extract = [], Validating._extract_gallery
    monkeypatch.setattr(Validating, "_extract_gallery", lambda *given: read.append(given) or extract(*given))
    for nth in (1, 2):
        metrics = validation(PixelModel(), nth, nth).metrics
        assert not read and "val/modality_gap/distance" in metrics
        assert not [name for name in metrics if "knn" in name or "same_class" in name]
    metrics = validation(PixelModel(), 3, 3).metrics
    assert len(read) == 1 and "val/same_class/map@10" in metrics
    assert not [name for name in metrics if "knn" in name]  # which nobody asked for
    metrics, _, _ = validate(val, train, tmp_path / "run", evaluations=(Choice("knn"), Choice("same_class")))
    assert "val/knn/accuracy" in metrics


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"best_by": "val/image_to_text/recal@1"},
            "measures no 'val/image_to_text/recal@1'. Did you mean 'val/image_to_",
        ),
        ({"best_by": "val/knn/accuracy"}, "has no class labels, and a run of infonce is followed by val/knn/accuracy"),
        (
            {"evaluations": (Choice("retrieval", {"every": 2}),)},
            "best_by is auto, and 'retrieval' is measured at every 2",
        ),
        (PICTURES_ALONE, "has no class labels, and a run of nt_xent compares no captions.*or set data.val=\\[\\]"),
    ],
)
def test_what_cannot_be_measured_is_said_before_the_first_step(tmp_path, settings, sentence):
    url = make_shard_set(tmp_path / "val", 4)
    with pytest.raises(ConfigError, match=sentence):
        validate(url, url, tmp_path / "run", times=0, **settings)


@pytest.mark.parametrize(
    ("evaluation", "sentence"),
    [
        (Choice("calibration", {"folds": 30}), "captions are of 12 different images or classes, fewer than folds"),
        ("linear_probe", r"class cow has 1 picture, which cannot be learned from and measured"),
        (Choice("linear_probe", {"num_folds": 3}), "class cow has 1 picture"),
        ("feature_map", "5 pictures are too few for a map"),
    ],
)
def test_a_set_that_is_too_small_for_an_evaluation_is_named_before_the_first_step(tmp_path, evaluation, sentence):
    url = make_shard_set(tmp_path / "val", 5 if evaluation == "feature_map" else 12, num_captions=2)
    add_column(url, "labels", np.array([0, 1] * 5 + [2, -1])[: len(ShardSet.open(url))].astype("<i4"), classes=CATTLE)
    listed = evaluation if isinstance(evaluation, Choice) else Choice(evaluation)
    with pytest.raises(DataError, match=sentence):
        validate(url, url, tmp_path / "run", times=0, evaluations=(listed,))


def test_a_gallery_that_lacks_a_class_is_named_before_the_first_step(tmp_path):
    val, _ = labelled(tmp_path / "val", 12)
    train, _ = labelled(tmp_path / "train", 12, classes=("dog", "cow"), seed=1, source="train")
    with pytest.raises(DataError, match="class cat has no picture in the training set"):
        validate(val, train, tmp_path / "run", times=0, evaluations=(Choice("linear_probe"),))


def test_one_picture_with_a_class_has_no_neighbours_and_that_is_named_before_the_first_step(tmp_path):
    url = make_shard_set(tmp_path / "val", 6)
    add_column(url, "labels", np.array([0, -1, -1, -1, -1, -1], "<i4"), classes=("cat",))
    with pytest.raises(DataError, match="k-NN: 1 pictures with a class and 0 others to compare them with"):
        validate(url, url, tmp_path / "run", times=0, **PICTURES_ALONE)


def test_what_is_known_before_the_features_is_what_is_known_with_them(tmp_path):
    """Two sets show the same images, and the training set names its classes in another order."""
    val = [labelled(tmp_path / name, count, source="val")[0] for name, count in (("a", 5), ("b", 7))]
    train, _ = labelled(tmp_path / "train", 20, classes=("dog", "cat", "cow"), seed=1, source="train")
    sets = ShardSet.open(val), ShardSet.open(train)
    labels, of_train = map(labels_of, sets)
    gallery = GallerySource.of(sets[1], of_train, sets[0])
    early = known_of(sets[0], labels, gallery, compares_text=True)
    found = pixels_of(val)
    classes = joint_classes(labels, gallery)
    pictures = Pictures(pixels_of(train).features.images[gallery.samples], gallery.samples)
    late = Subject(
        found.features.images,
        samples=found.samples,
        labels=labels.among(classes)[found.samples],
        classes=classes,
        pairs=found.features,
        captions=found.captions,
        ranks=retrieval_ranks(found.features),
        gallery=gallery.gallery(pictures, classes),
    ).known
    assert (early.num_images, early.num_groups, early.classes) == (7, 7, late.classes) and late.num_images == 7
    for name in ("labels", "gallery_labels", "samples"):
        np.testing.assert_array_equal(getattr(early, name), getattr(late, name))
    np.testing.assert_array_equal(early.captions(), late.captions())
