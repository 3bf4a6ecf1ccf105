"""Robustness against a double loop over corruptions and severities; paired intervals; the same on any rank."""

import base64
import io
from dataclasses import replace
from pathlib import Path

import gloo
import numpy as np
import pytest
import torch
from feature_sets import slow_ranks, unit
from PIL import Image
from smooth_photos import photo

from core.config import Choice
from core.errors import ConfigError
from eval.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from eval.evaluations import EVALUATIONS, chosen, measure_all
from eval.evaluations.evaluation import Gallery, Prompts, Subject
from eval.evaluations.knn import knn_is_right
from eval.evaluations.robustness import ClassRobustness, Robustness
from eval.metrics import FeatureSet, bootstrap
from eval.ranks import retrieval_ranks
from eval.report.drawing.style import DARK, LIGHT, png_bytes
from eval.report.measured import part_of

COUNT, SIZE, SOME = 24, 24, ("impulse_noise", "contrast", "occlusion")
RECALLS = [(d, k) for d in range(2) for k in (1, 5, 10)]


def features_of(pictures):
    """Coarse pixels, centred so that contrast matters."""
    coarse = pictures.double().reshape(len(pictures), 3, 4, SIZE // 4, 4, SIZE // 4).mean((3, 5)) / 255 - 0.45
    return unit(coarse.flatten(1).numpy() + 1e-3)


def subject_of(num_images=COUNT, encode=None, **more):
    rng = np.random.default_rng(3)
    pictures = torch.from_numpy(np.stack([photo(SIZE, seed) for seed in range(num_images)]))
    samples, images = np.arange(num_images) * 3, features_of(pictures)
    image_of_text = np.repeat(np.arange(num_images), 1 + np.arange(num_images) % 3)
    texts = unit(images[image_of_text] + 0.3 * rng.normal(size=(len(image_of_text), images.shape[1])))
    pairs = FeatureSet(images, texts, image_of_text)
    subject = Subject(
        images,
        pairs=pairs,
        ranks=retrieval_ranks(pairs),
        samples=samples,
        encode=encode or (lambda change: features_of(change(pictures, samples))),
        **more,
    )
    return subject, pictures


def slow_recalls(pairs):
    image_to_text, text_to_image, *_ = slow_ranks(pairs)
    return [float(np.mean([rank <= k for rank in (image_to_text, text_to_image)[d]])) for d, k in RECALLS]


def test_recall_is_that_of_a_double_loop_over_corruptions_and_severities():
    subject, pictures = subject_of()
    evaluation = Robustness(corruptions=SOME, severities=(1, 4), seed=5)
    found = evaluation.measure(subject)
    clean, under = np.mean(slow_recalls(subject.pairs)), {}
    for i, name in enumerate(SOME):
        for j, severity in enumerate((1, 4)):
            each = [
                corrupt(pictures[n : n + 1], subject.samples[n : n + 1], name, severity, seed=5)
                for n in range(len(pictures))
            ]
            recalls = slow_recalls(replace(subject.pairs, images=features_of(torch.cat(each))))
            under[name, severity] = np.mean(recalls)
            assert found.shown["metrics"]["mean_recall"]["under"][i][j] == pytest.approx(np.mean(recalls))
            for (d, k), recall in zip(RECALLS, recalls, strict=True):
                metric = f"{('image_to_text', 'text_to_image')[d]}/recall@{k}"
                assert found.shown["metrics"][metric]["under"][i][j] == pytest.approx(recall)
    assert found.shown["metrics"]["mean_recall"]["clean"] == pytest.approx(clean)
    mean = np.mean(list(under.values()))
    assert 0.1 < mean < clean, "the example says something"
    assert found.figures["robustness/recall"] == pytest.approx(mean)
    assert found.figures["robustness/retained"] == pytest.approx(mean / clean)
    for name in SOME:
        of_name = np.mean([under[name, severity] for severity in (1, 4)])
        assert found.figures[f"robustness/recall/{name}"] == pytest.approx(of_name)


def test_more_right_answers_are_right_for_corrupted_pictures_too():
    from eval.metrics import RightAnswers

    subject, _ = subject_of()
    says = subject.pairs.image_of_text // 2  # pictures in pairs share their captions
    rows = np.arange(len(subject.images))
    pairs = replace(subject.pairs, more_right=RightAnswers("every sample of a class is right", says, rows, rows // 2))
    own = Robustness(SOME[:1], (3,)).measure(subject).figures
    shared = Robustness(SOME[:1], (3,)).measure(replace(subject, pairs=pairs, ranks=retrieval_ranks(pairs))).figures
    assert shared["robustness/recall"] > own["robustness/recall"]


def labelled(leave_one_out, **more):
    """Classes that are thirds of a direction in which pictures differ most."""
    subject, pictures = subject_of(**more)
    direction = np.linalg.svd(subject.images - subject.images.mean(axis=0))[2][0]
    labels = np.argsort(np.argsort(subject.images @ direction)) * 3 // COUNT
    labels[5] = -1
    rng = np.random.default_rng(9)
    rows = rng.permutation(np.delete(np.arange(COUNT), 5))
    noise = 0.1 * rng.normal(size=(len(rows), subject.images.shape[1]))
    gallery = None if leave_one_out else Gallery(unit(subject.images[rows] + noise), labels[rows], rows)
    return replace(subject, labels=labels, gallery=gallery), pictures


@pytest.mark.parametrize("leave_one_out", [False, True])
def test_classes_are_found_in_the_clean_gallery(leave_one_out):
    subject, pictures = labelled(leave_one_out)
    prompts = Prompts(unit(np.random.default_rng(1).normal(size=(3, subject.images.shape[1]))), subject.labels)
    found = ClassRobustness(("contrast",), (5,)).measure(replace(subject, prompts=prompts))
    changed = features_of(corrupt(pictures, subject.samples, "contrast", 5))
    right, has_class = [], np.flatnonzero(subject.labels >= 0)
    for row in has_class:
        others = has_class[has_class != row]
        gallery = subject.gallery or Gallery(subject.images[others], subject.labels[others], others)
        right += knn_is_right(changed[[row]], subject.labels[[row]], gallery.images, gallery.labels).tolist()
    assert found.figures["class_robustness/accuracy"] == pytest.approx(np.mean(right))
    classes = np.argmax(changed[has_class] @ prompts.features.T, axis=1)
    zero_shot = np.mean(classes == subject.labels[has_class])
    assert found.shown["metrics"]["zero_shot/accuracy"]["under"] == [[pytest.approx(zero_shot)]]


def test_intervals_are_paired_with_clean_pictures_and_those_of_the_plain_bootstrap():
    subject, _ = labelled(True)
    found = ClassRobustness(SOME, SEVERITIES).measure(subject)
    shares, groups = [], np.arange(COUNT - 1)
    for name in SOME:
        cells = []
        for severity in SEVERITIES:
            alone = ClassRobustness((name,), (severity,))
            cells.append(alone.scores(subject, subject.encode(lambda x, s: corrupt(x, s, name, severity))))  # noqa: B023
        shares.append(np.mean([cell.queries[0][0] for cell in cells], axis=0))
    wanted, interval = bootstrap(np.mean(shares, axis=0), groups), found.intervals["class_robustness/accuracy"]
    assert (interval.low, interval.high) == (pytest.approx(wanted.low), pytest.approx(wanted.high))

    def encode(change):
        change(torch.zeros(COUNT, 3, SIZE, SIZE, dtype=torch.uint8), subject.samples)
        return subject.images

    same = ClassRobustness(SOME, (1,)).measure(replace(subject, encode=encode)).intervals
    retained = same["class_robustness/retained"]
    assert (retained.low, retained.high) == (pytest.approx(1), pytest.approx(1))
    assert same["class_robustness/accuracy"].low < same["class_robustness/accuracy"].high


def test_who_finds_nothing_retains_nothing():
    subject, _ = labelled(False)
    lost = replace(subject, labels=np.where(subject.labels < 0, -1, 3))  # of which the gallery has none
    found = ClassRobustness(SOME, (1,)).measure(lost)
    assert found.figures["class_robustness/retained"] == 0 == found.intervals["class_robustness/retained"].high


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_worst_severity_moves_features_further_than_the_mildest(name):
    subject, _ = subject_of()
    moved = [
        1 - np.sum(subject.encode(lambda x, s: corrupt(x, s, name, severity)) * subject.images, axis=1).mean()  # noqa: B023
        for severity in (1, 5)
    ]
    assert 0 <= moved[0] < moved[1]


def test_figures_are_known_from_the_options():
    options = {"corruptions": ["contrast", "pixelate"], "severities": [2], "every": 3}
    evaluations = chosen([Choice("robustness", options), Choice("class_robustness", options)])
    found = measure_all(evaluations, labelled(True)[0])
    for name, figure in (("robustness", "recall"), ("class_robustness", "accuracy")):
        each = {f"{name}/{figure}/{corruption}" for corruption in ("contrast", "pixelate")}
        assert set(found[name].figures) == {f"{name}/{figure}", f"{name}/retained"} | each
        assert set(found[name].intervals) == set(found[name].figures)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corruptions": ["contrst"]}, "unknown name 'contrst'. Did you mean 'contrast'"),
        ({"severities": [0]}, "severities: 0 is none"),
        ({"severities": [2, 2]}, "names one twice"),
        ({"corruptions": []}, "is empty"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        chosen([Choice("robustness", options)])


def test_it_says_what_it_will_cost():
    said = []
    subject, _ = subject_of(say=said.append)
    Robustness(SOME, (1, 2)).measure(subject)
    assert said[0] == "robustness/recall: 6 forward passes of 24 pictures"
    assert len(said) == 2 and "all take about" in said[1]


@pytest.mark.parametrize("name", ["robustness", "class_robustness"])
def test_the_section_shows_figures_an_example_and_curves(name, tmp_path):
    evaluation = EVALUATIONS[name](corruptions=SOME, severities=(5, 1))
    found = evaluation.measure(labelled(True)[0])
    part = part_of(found)
    section = evaluation.section(part)
    assert section.values[0][0] == f"{100 * found.figures[evaluation.retained]:.1f} %"
    assert section.tables[0].head == ("corruption", "severity 5", "severity 1", "mean", "retained")
    assert [row[0] for row in section.tables[0].rows] == ["impulse noise", "contrast", "occlusion"]
    assert section.html.count("<img") == 1 + 3 * 2
    pictures = [part["example"]["clean"], *(p for row in part["example"]["under"] for p in row)]
    for picture in pictures:
        assert Image.open(io.BytesIO(base64.b64decode(picture))).size == (SIZE, SIZE)
    assert len(set(pictures)) == len(pictures)
    for theme in (LIGHT, DARK):
        (figure,) = evaluation.charts(part, tmp_path, theme).values()
        assert {axes.get_title(loc="left") for axes in figure.axes} == {"impulse noise", "contrast", "occlusion"}
        line = figure.axes[1].lines[-1]
        curve = next(iter(evaluation.curves))
        score = part["metrics"][curve] if name == "class_robustness" else part["metrics"]["text_to_image/mean_recall"]
        assert line.get_xdata().tolist() == [0, 1, 5]
        assert line.get_ydata().tolist() == [score["clean"], *reversed(score["under"][1])]
        assert len(png_bytes(figure)) < 120_000


def measure_validation(url, run_dir):
    """What a training run's validation measures, in this process's group."""
    from accelerate import Accelerator
    from pixel_model import PixelModel, normalize

    from core.shard_set import ShardSet
    from eval.validation import make_validation
    from trainer.config import DataConfig, TrainConfig

    config = TrainConfig(
        run_dir=Path(run_dir),
        data=DataConfig((url,), (url,), num_workers=0),
        global_batch_size=6,
        eval_batch_size=4,
        evaluations=(Choice("robustness", {"corruptions": list(SOME), "severities": [1, 5]}),),
    )
    shard_set = ShardSet.open(url)
    given = (shard_set, shard_set, normalize, config.build_objective(), config, Accelerator(cpu=True))
    measured = make_validation(*given)(PixelModel(), 1, None)
    return {name: value for name, value in measured.metrics.items() if "robustness" in name}


@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_any_number_of_ranks_gets_the_figures_of_one(tmp_path, world_size):
    from shard_sets import make_shard_set

    url = make_shard_set(tmp_path / "val", 13, num_captions=2)
    alone = measure_validation(url, str(tmp_path / "alone"))
    assert len(alone) == 2 + len(SOME)
    for found in gloo.run(world_size, measure_validation, url, str(tmp_path / "together")):
        assert found == alone
