"""Zero-shot classes: ensembles of prompts, accuracy against a plain loop, ties, prompt files."""

import numpy as np
import pytest

from core.errors import ConfigError
from eval.evaluations.evaluation import Prompts, Subject
from eval.evaluations.zero_shot import (
    ZeroShot,
    check_templates,
    class_features,
    class_probabilities,
    read_lines,
    score_labels,
    spoken_class,
)


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


@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_a_plain_loop_with_ties_against_the_model(seed):
    rng = np.random.default_rng(seed)
    similarity = rng.integers(0, 6, (60, 8)).astype(np.float32)  # ties everywhere
    labels = rng.integers(0, 7, 60)  # class 7 has no image
    ranks = [1 + sum(row[k] >= row[own] for k in range(8) if k != own) for row, own in zip(similarity, labels)]
    scores = score_labels(similarity, labels)
    assert scores["top1"] == pytest.approx(np.mean([rank == 1 for rank in ranks]))
    assert scores["top5"] == pytest.approx(np.mean([rank <= 5 for rank in ranks]))
    assert scores["per_class"][7] is None
    for k in range(7):
        assert scores["per_class"][k] == pytest.approx(np.mean([r == 1 for r, own in zip(ranks, labels) if own == k]))
    confusion = np.array(scores["confusion"])
    assert confusion.sum() == 60
    assert np.trace(confusion) / 60 == pytest.approx(scores["top1"])


def test_a_collapsed_encoder_classifies_nothing():
    assert score_labels(np.ones((10, 6)), np.arange(10) % 6)["top5"] == 0


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
    scores = score_labels((images @ classes.T)[labels >= 0], labels[labels >= 0])
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
