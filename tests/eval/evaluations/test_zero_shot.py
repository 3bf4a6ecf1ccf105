"""Zero-shot classes: ensembles of prompts, accuracy against a plain loop, ties, prompt files."""

import tracemalloc
from dataclasses import replace
from types import SimpleNamespace

import gloo
import numpy as np
import pytest

from core.errors import ConfigError
from eval.classes import zero_shot, zero_shot_labelled
from eval.evaluations import zero_shot as zero_shot_module
from eval.evaluations.evaluation import Prompts, Subject
from eval.evaluations.prompt_templates import PromptTemplates
from eval.evaluations.robustness import ClassRobustness
from eval.evaluations.zero_shot import (
    ZeroShot,
    check_templates,
    class_features,
    class_probabilities,
    rank_classes,
    read_lines,
    score_labels,
    spoken_class,
)
from eval.features import Pictures


def fake_embedding(texts):
    rows = np.stack([np.random.default_rng([len(t), *t.encode()]).standard_normal(16) for t in texts])
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_a_class_is_the_renormalised_mean_of_its_prompts():
    templates = ("a photo of a {}.", "a {}")
    found = class_features(["dog", "cat"], templates, fake_embedding)
    for k, name in enumerate(["dog", "cat"]):
        mean = np.mean([fake_embedding([template.format(name)])[0] for template in templates], axis=0)
        np.testing.assert_allclose(found[k], mean / np.linalg.norm(mean), atol=1e-6)


def test_probabilities_follow_the_learned_temperature():
    images, classes = np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32)
    cold = class_probabilities(images, classes, 100.0)
    warm = class_probabilities(images, classes, 1.0)
    np.testing.assert_allclose(cold.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(warm[0, 0], np.e / (np.e + 2), rtol=1e-6)
    assert cold[0, 0] > warm[0, 0]


def scores_of(similarity, labels):
    """Pictures whose cosine with each class is given: the classes are axes. Every second row plays no part."""
    images = np.repeat(similarity.astype(np.float32), 2, axis=0)
    images[1::2] = np.nan
    given = images, 2 * np.arange(len(labels)), np.eye(similarity.shape[1], dtype=np.float32), labels
    scores = score_labels(*given)
    assert scores["top1"] == np.mean(rank_classes(*given) == 1)
    return scores


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("block", [1, 1000, 2**25])
def test_scores_equal_a_plain_loop_with_ties_against_the_model(seed, block, monkeypatch):
    rng = np.random.default_rng(seed)
    similarity = rng.integers(0, 6, (60, 8)).astype(np.float32)  # ties everywhere
    labels = rng.integers(0, 7, 60)  # class 7 has no image
    ranks = [1 + sum(row[k] >= row[own] for k in range(8) if k != own) for row, own in zip(similarity, labels)]
    monkeypatch.setattr("eval.evaluations.zero_shot._BLOCK_BYTES", block)
    scores = scores_of(similarity, labels)
    assert scores["top1"] == pytest.approx(np.mean([rank == 1 for rank in ranks]))
    assert scores["top5"] == pytest.approx(np.mean([rank <= 5 for rank in ranks]))
    assert scores["per_class"][7] is None
    for k in range(7):
        assert scores["per_class"][k] == pytest.approx(np.mean([r == 1 for r, own in zip(ranks, labels) if own == k]))
    confusion = np.array(scores["confusion"])
    assert confusion.sum() == 60
    assert np.trace(confusion) / 60 == pytest.approx(scores["top1"])


def test_a_collapsed_encoder_classifies_nothing():
    assert scores_of(np.ones((10, 6)), np.arange(10) % 6)["top5"] == 0


def test_prompt_files_leave_out_comments_and_blank_lines(tmp_path):
    path = tmp_path / "templates.txt"
    path.write_text("# a comment\na {}.\n\n  the {}  \n")
    assert read_lines(path) == ("a {}.", "the {}")
    with pytest.raises(ConfigError, match=r"no such file of classes or templates"):
        read_lines(tmp_path / "absent.txt")


@pytest.mark.parametrize("template", ["a photo", "a {} and a {}"])
def test_a_template_without_its_one_place_is_refused(template):
    with pytest.raises(ConfigError, match=r"needs exactly one \{\}"):
        check_templates([template])


def test_a_template_may_hold_other_braces_as_they_are():
    check_templates(["a photo of a {}."])
    assert class_features(["dog"], ["a {} {x}"], fake_embedding).shape == (1, 16)


def test_folder_names_are_spoken():
    assert spoken_class("grand_piano") == "grand piano"


def test_each_figure_has_an_interval_that_holds_it():
    rng = np.random.default_rng(0)
    classes = np.eye(8, dtype=np.float32)
    labels = rng.integers(-1, 7, 300)  # some of no class, and a class without pictures
    images = classes[np.maximum(labels, 0)] + rng.standard_normal((300, 8)).astype(np.float32)
    measured = ZeroShot().measure(Subject(images, prompts=Prompts(classes, labels)))
    rows = np.flatnonzero(labels >= 0)
    scores = score_labels(images, rows, classes, labels[rows])
    assert measured.figures == pytest.approx(
        {
            "zero_shot/accuracy": scores["top1"],
            "zero_shot/top5": scores["top5"],
            "zero_shot/mean_per_class": scores["mean_per_class"],
        }
    )
    for name, interval in measured.intervals.items():
        assert interval.low < measured.figures[name] < interval.high
    assert measured.intervals.keys() == measured.figures.keys()
    labels[np.flatnonzero(labels == 3)[1:]] = -1  # a class of one picture
    alone = ZeroShot().measure(Subject(images, prompts=Prompts(classes, labels)))
    assert alone.figures.keys() == measured.figures.keys()
    assert alone.intervals.keys() == {"zero_shot/accuracy", "zero_shot/top5"}


def test_no_number_for_every_picture_and_class_is_held_at_a_time(monkeypatch):
    monkeypatch.setattr("eval.evaluations.zero_shot._BLOCK_BYTES", 2**18)
    rng, count, num_classes = np.random.default_rng(0), 8000, 500  # 16 MB of similarities
    images, labels = rng.standard_normal((count, 8)).astype(np.float32), rng.integers(num_classes, size=count)
    features = rng.standard_normal((num_classes, 8)).astype(np.float32)
    subject = Subject(images, labels, prompts=Prompts(features, labels), classes=tuple(map(str, range(num_classes))))
    shelf = SimpleNamespace(picture=str)
    pictures = Pictures(images, np.arange(count))
    ways = (
        lambda: ZeroShot().measure(subject),
        lambda: PromptTemplates().measure(replace(subject, words=lambda texts: np.tile(features, (10, 1)))),
        lambda: ClassRobustness.scores(subject, images),
        lambda: zero_shot(pictures, subject.classes, ("a {}",), lambda texts: features, 10.0, shelf, 3),
        lambda: zero_shot_labelled(pictures, subject.prompts, subject.classes, ("a {}",), 10.0, shelf, 3),
    )
    monkeypatch.setattr("eval.evaluations.robustness.pictures_are_right", lambda subject, images: labels == 0)
    for way in ways:
        way()  # imports what it needs
        tracemalloc.start()
        way()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 12e6, (way, peak)


def measure_on_ranks():
    zero_shot_module._BLOCK_BYTES = 8 * 9 * 50  # seven blocks of 50 pictures
    rng = np.random.default_rng(0)
    images, labels = rng.standard_normal((333, 16)).astype(np.float32), rng.integers(-1, 9, 333)
    prompts, rows = Prompts(rng.standard_normal((9, 16)).astype(np.float32), labels), np.flatnonzero(labels >= 0)
    found = ZeroShot().measure(Subject(images, prompts=prompts))
    scores = score_labels(images, rows, prompts.features, labels[rows])
    return dict(found.figures), dict(found.intervals), found.of_each["zero_shot/accuracy"].tolist(), scores


@pytest.mark.parametrize("num_processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_any_number_of_processes_gives_the_same_digits(num_processes, monkeypatch):
    monkeypatch.setattr(zero_shot_module, "_BLOCK_BYTES", 1)
    assert gloo.run(num_processes, measure_on_ranks) == [measure_on_ranks()] * num_processes
