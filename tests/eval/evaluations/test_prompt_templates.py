"""Prompt templates: each alone and all together against plain loops, paired differences, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from core.config import Choice
from core.errors import ConfigError, DataError
from eval.evaluations import chosen
from eval.evaluations.evaluation import Prompts, Subject
from eval.evaluations.prompt_templates import ENSEMBLE, FIRST, GAIN, SINGLE, TEN_TEMPLATES, PromptTemplates
from eval.evaluations.zero_shot import ZeroShot, class_features, read_lines, spoken_class
from eval.metrics import bootstrap
from eval.report.drawing.style import DARK, LIGHT
from eval.report.measured import part_of

CLASSES = ("grand_piano", "cat", "sea-horse", "dog", "hat", "cup", "car")
ROOT = Path(__file__).resolve().parents[3]


def embed(texts):
    """A text's direction is its class's, and some of its own."""
    rows = []
    for text in texts:
        noise = np.random.default_rng([len(text), *text.encode()]).standard_normal(12)
        name = next((k for k, own in enumerate(CLASSES) if spoken_class(own) in text), 11)
        rows.append(np.eye(12)[name] * 3 + noise)
    rows = np.stack(rows)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def some_pictures(count=200, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(-1, len(CLASSES) - 1, count)  # some of no class, and a class without pictures
    images = np.eye(12)[np.maximum(labels, 0)] + 0.6 * rng.standard_normal((count, 12))
    images = (images / np.linalg.norm(images, axis=1, keepdims=True)).astype(np.float32)
    return Subject(images, labels=labels, classes=CLASSES, words=embed)


def is_right_by_a_loop(subject, features):
    """One picture at a time, in float64."""
    scores = [[float(np.dot(image.astype(float), own)) for own in features] for image in subject.images]
    pairs = [(row, label) for row, label in zip(scores, subject.labels, strict=True) if label >= 0]
    return np.array([all(row[label] > s for k, s in enumerate(row) if k != label) for row, label in pairs])


def test_every_figure_is_that_of_a_plain_loop():
    subject, templates = some_pictures(), TEN_TEMPLATES[:4]
    names = [spoken_class(name) for name in CLASSES]
    single = np.stack([is_right_by_a_loop(subject, class_features(names, [t], embed)) for t in templates])
    together = is_right_by_a_loop(subject, class_features(names, templates, embed))
    measured = PromptTemplates(templates).measure(subject)
    expected = {FIRST: single[0].mean(), SINGLE: single.mean(), ENSEMBLE: together.mean()}
    expected[GAIN] = together.mean() - single[0].mean()
    assert measured.figures == pytest.approx(expected, abs=1e-12)
    assert 0 < measured.figures[FIRST] < 1 and len(set(measured.figures.values())) == 4  # or nothing is compared
    for row, own in zip(measured.shown["templates"], single, strict=True):
        assert row["accuracy"]["estimate"] == pytest.approx(own.mean())
        difference = bootstrap(own.astype(float) - single[0])
        assert row["gain"] == pytest.approx(vars(difference))
    assert measured.shown["num_images"] == len(single[0]) < 200


def test_the_ensemble_is_what_zero_shot_measures_with_these_templates():
    subject = some_pictures(seed=3)
    features = class_features([spoken_class(name) for name in CLASSES], TEN_TEMPLATES, embed)
    given = Subject(subject.images, prompts=Prompts(features, subject.labels))
    zero_shot, templates = ZeroShot().measure(given), PromptTemplates().measure(subject)
    assert templates.figures[ENSEMBLE] == zero_shot.figures["zero_shot/accuracy"]
    assert templates.intervals[ENSEMBLE] == zero_shot.intervals["zero_shot/accuracy"]


def test_the_difference_is_paired_and_so_narrower_than_that_of_two_shares():
    found = PromptTemplates().measure(some_pictures(600, seed=1)).intervals
    widths = {name: found[name].high - found[name].low for name in (FIRST, ENSEMBLE, GAIN)}
    assert widths[GAIN] < 0.8 * np.hypot(widths[FIRST], widths[ENSEMBLE])
    assert found[GAIN].low <= found[GAIN].estimate <= found[GAIN].high


def test_our_file_of_ten_is_what_is_measured_by_default(tmp_path):
    assert read_lines(ROOT / "configs/prompts/ten_templates.txt") == TEN_TEMPLATES
    seven = read_lines(ROOT / "configs/prompts/clip_templates.txt")
    assert set(seven) <= set(TEN_TEMPLATES) and len(set(TEN_TEMPLATES)) == 10
    (tmp_path / "two.txt").write_text("a {}\nthe {}\n")
    options = {"name": "prompt_templates", "templates_file": str(tmp_path / "two.txt")}
    listed = chosen([Choice(options.pop("name"), options)])["prompt_templates"]
    assert [row["template"] for row in listed.measure(some_pictures()).shown["templates"]] == ["a {}", "the {}"]


@pytest.mark.parametrize("templates", [(), ("a {}",), ("a {}", "a {}"), ("a {}", "the")])
def test_fewer_than_two_different_templates_are_refused(templates):
    with pytest.raises(ConfigError, match="templates"):
        PromptTemplates(templates)


def test_a_set_without_a_labelled_picture_is_refused_in_a_sentence():
    subject = some_pictures(12)
    nobody = replace(subject, labels=np.full(12, -1))
    with pytest.raises(DataError, match="prompt_templates: none of 12 pictures has a class. Label some"):
        PromptTemplates().measure(nobody)
    prompts = Prompts(np.eye(3, 12, dtype=np.float32), nobody.labels)
    with pytest.raises(DataError, match="zero_shot: none of 12 pictures has a class"):
        ZeroShot().measure(replace(nobody, prompts=prompts))


def test_the_section_and_the_chart_name_every_template():
    part = {"shards": ["mine"], **part_of(PromptTemplates().measure(some_pictures()))}
    section = PromptTemplates.section(part)
    assert [row[0] for row in section.tables[0].rows] == ["all 10 together", *TEN_TEMPLATES]
    for theme in (LIGHT, DARK):
        (axes,) = PromptTemplates.charts(part, Path(), theme)["accuracy"].axes
        assert [label.get_text() for label in axes.get_yticklabels()] == ["all 10 together", *TEN_TEMPLATES]
