"""Calibration against loops, scikit-learn and a known truth; no query is judged by a map that has seen its image."""

import math
from dataclasses import replace

import numpy as np
import pytest
from feature_sets import random_features
from gloo import run

from core.config import Choice
from core.errors import ConfigError, DataError
from eval.evaluations import chosen, measure_all
from eval.evaluations.calibration import Calibration, first_answers
from eval.evaluations.evaluation import Subject
from eval.metrics import FeatureSet
from eval.nearest import Tiles
from eval.probability import (
    PlattMap,
    brier_skill,
    ece,
    ece_interval,
    ece_of_chance,
    fit_platt,
    folds_of,
    out_of_fold,
)
from eval.ranks import retrieval_ranks
from eval.report.measured import part_of, sections
from trainer.telemetry.names import lower_is_better


def subject_of(features, scale=20.0):
    return Subject(features.images, pairs=features, ranks=retrieval_ranks(features), logit_scale=scale)


def measured(subject, **options):
    return measure_all({"calibration": Calibration(**options)}, subject)["calibration"]


def ece_by_loops(probabilities, is_right, num_bins=10):
    """Equal counts: the queries in the order of their probability, cut into ten; nothing ties."""
    order = sorted(range(len(probabilities)), key=lambda i: probabilities[i])
    size, total = len(order) // num_bins, 0.0
    for b in range(num_bins):
        own = order[b * size : (b + 1) * size]
        predicted = sum(probabilities[i] for i in own) / size
        right = sum(bool(is_right[i]) for i in own) / size
        total += abs(predicted - right) * size / len(order)
    return total


def judged(count=400, seed=0):
    rng = np.random.default_rng(seed)
    probability = rng.beta(2, 4, count)
    return probability, rng.random(count) < probability**1.5


def test_ece_is_that_of_a_loop_and_of_scikit_learns_curve():
    calibration = pytest.importorskip("sklearn.calibration")
    probability, is_right = judged()
    right, predicted = calibration.calibration_curve(is_right, probability, n_bins=10, strategy="quantile")
    assert ece(probability, is_right) == pytest.approx(np.abs(right - predicted).mean(), abs=1e-12)
    assert ece(probability, is_right) == pytest.approx(ece_by_loops(probability, is_right), abs=1e-12)
    assert 0.05 < ece(probability, is_right) < 0.2
    assert ece(np.full(40, 0.25), np.arange(40) % 4 == 0) == 0  # equal probabilities share a bin


def test_figures_are_those_of_loops_over_queries_and_of_scikit_learn():
    metrics, linear = pytest.importorskip("sklearn.metrics"), pytest.importorskip("sklearn.linear_model")
    features = random_features(3, [5] * 40)
    found = measured(subject_of(features), folds=4, seed=7)
    shown = found.shown["directions"]["text_to_image"]
    fold_of_image = folds_of(np.arange(40), 4, 7)
    leads, is_right = [], []
    for text, own in zip(features.texts.astype(float), features.image_of_text, strict=True):
        cosines = [float(text @ image) for image in features.images.astype(float)]
        first = max(range(40), key=lambda i: cosines[i])
        others = sum(math.exp(20 * cosine) for i, cosine in enumerate(cosines) if i != first)
        leads.append(20 * cosines[first] - math.log(others))
        is_right.append(first == own)
    leads, is_right = np.array(leads), np.array(is_right)
    fold = fold_of_image[features.image_of_text]
    mapped, constant = np.empty(200), np.empty(200)
    for k in range(4):
        others, n1, n0 = fold != k, is_right[fold != k].sum(), (~is_right[fold != k]).sum()
        # Platt's targets, as weights of a right and a wrong copy of every query.
        target = np.where(is_right[others], (n1 + 1) / (n1 + 2), 1 / (n0 + 2))
        peer = linear.LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000)
        copies = np.concatenate([leads[others]] * 2)[:, None]
        peer.fit(copies, np.repeat([1, 0], others.sum()), np.concatenate([target, 1 - target]))
        mapped[fold == k] = peer.predict_proba(leads[fold == k][:, None])[:, 1]
        constant[fold == k] = n1 / (n1 + n0)
    brier, of_constant = metrics.brier_score_loss(is_right, mapped), metrics.brier_score_loss(is_right, constant)
    figures = {name.rsplit("/")[-1]: found.figures[name] for name in found.figures if "text_to_image" in name}
    assert figures["brier"] == pytest.approx(brier, abs=1e-6)
    assert figures["brier"] == pytest.approx(sum((mapped - is_right) ** 2) / 200, abs=1e-6)
    assert figures["brier_skill"] == pytest.approx(1 - brier / of_constant, abs=1e-5)
    assert figures["ece"] == pytest.approx(ece_by_loops(mapped, is_right), abs=1e-6)
    assert shown["brier_difference"]["estimate"] == pytest.approx(brier - of_constant, abs=1e-6)
    assert shown["base_rate"] == np.mean(is_right) and sum(shown["histogram"]) == 200
    assert sum(bin["count"] * bin["right"] for bin in shown["bins"]) == pytest.approx(is_right.sum())


def test_fitted_probabilities_approach_a_known_truth():
    rng = np.random.default_rng(0)
    truth = PlattMap(slope=14.0, bias=-5.0)
    errors = []
    for count in (200, 2_000, 50_000):
        cosine = rng.normal(0.3, 0.1, count)
        is_right = rng.random(count) < truth(cosine)
        found = out_of_fold(cosine, is_right, folds_of(np.arange(count), 5, 0))
        errors.append(np.abs(found.mapped - truth(cosine)).max())
        assert ece(found.mapped, is_right) < 2 * ece_of_chance(found.mapped)
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.02


def test_what_chance_makes_of_a_perfect_map_is_known():
    rng = np.random.default_rng(0)
    probability = rng.beta(2, 5, 300)
    simulated = np.mean([ece(probability, rng.random(300) < probability) for _ in range(400)])
    assert ece_of_chance(probability) == pytest.approx(simulated, rel=0.05)
    intervals = [ece_interval(probability, rng.random(300) < probability, np.arange(300)) for _ in range(100)]
    assert np.mean([interval.low == 0 for interval in intervals]) >= 0.95  # its true error is 0
    shifted = ece_interval(probability, rng.random(300) < np.minimum(1, probability + 0.3), np.arange(300))
    assert shifted.low > 0.2 and shifted.low <= shifted.estimate <= shifted.high


def remember(x, is_right):
    """Fits anything: every query gets the answer of the nearest that was seen."""
    order = np.argsort(x)
    x, answers = x[order], is_right[order].astype(float)

    def judge(queries):
        after = np.clip(np.searchsorted(x, queries), 1, len(x) - 1)
        nearer = np.where(queries - x[after - 1] < x[after] - queries, after - 1, after)
        return answers[nearer]

    return judge


def test_noise_is_worth_nothing_out_of_fold_however_well_a_map_remembers_it():
    rng = np.random.default_rng(0)
    image = np.repeat(np.arange(200), 5)
    noise = rng.normal(size=200)[image] + 1e-6 * rng.normal(size=1000)  # captions of an image are alike
    is_right = (rng.random(200) < 0.3)[image]  # and right together
    fold = folds_of(image, 5, 0)
    assert all(len(set(fold[image == i])) == 1 for i in range(200))
    honest = out_of_fold(noise, is_right, fold, remember)
    in_fold = remember(noise, is_right)(noise)
    by_caption = out_of_fold(noise, is_right, folds_of(np.arange(1000), 5, 0), remember)  # other captions give it away
    skills = {
        name: brier_skill((p - is_right) ** 2, (honest.constant - is_right) ** 2, image).estimate
        for name, p in (("in fold", in_fold), ("by caption", by_caption.mapped), ("honest", honest.mapped))
    }
    assert skills["in fold"] == 1 and skills["by caption"] > 0.9 and skills["honest"] < 0
    platt = out_of_fold(noise, is_right, fold)
    gained = brier_skill((platt.mapped - is_right) ** 2, (platt.constant - is_right) ** 2, image)
    assert gained.low < 0 and gained.estimate < 0.02


def test_a_query_is_judged_without_the_other_captions_of_its_image():
    features = random_features(1, [5] * 30)
    subject = subject_of(features)
    first = measured(subject, seed=3).shown["directions"]["text_to_image"]["base_rate_of_other_folds"]
    fold = folds_of(features.image_of_text, 5, 3)
    hits = subject.ranks.text_to_image == 1
    assert first == [np.mean(hits[fold != k]) for k in range(5)]
    assert [len(np.unique(features.image_of_text[fold == k])) for k in range(5)] == [6] * 5


@pytest.mark.parametrize("rows", [1, 7, 1000])
@pytest.mark.parametrize("tile", [1, 3, 1000])
def test_leads_are_log_odds_whatever_the_block_and_the_tile(rows, tile, monkeypatch):
    features = random_features(0, [3] * 20)
    monkeypatch.setattr("eval.nearest.MOST_QUERIES", rows)
    monkeypatch.setattr("eval.nearest.CPU_TILE", tile)
    cosine, lead = first_answers(features.texts, features.images, 30.0).T
    logits = 30 * (features.texts.astype(float) @ features.images.astype(float).T)
    share = np.exp(logits.max(axis=1)) / np.exp(logits).sum(axis=1)
    np.testing.assert_allclose(lead, np.log(share / (1 - share)), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(cosine, logits.max(axis=1) / 30, atol=1e-6)


def test_the_lead_of_a_sure_answer_is_not_rounded_away_nor_that_of_equal_ones():
    gallery = np.array([[1, 0], [0, 1], [0, -1], [-1, 0]])
    (cosine, lead), (_, even) = first_answers(np.array([[1, 0], [0.6, 0.8]]), gallery, 100.0)
    assert cosine == 1 and lead == pytest.approx(100 - math.log(2), abs=1e-4)  # exp(-100) beside 1 is nothing
    assert even == pytest.approx(100 * (0.8 - 0.6), abs=1e-4)
    equal = first_answers(np.eye(1, 8), np.tile(np.eye(1, 8), (9000, 1)), 100.0)  # three tiles
    assert equal[0, 1] == pytest.approx(-math.log(8999), abs=1e-5)


def test_the_products_are_computed_on_the_device_of_the_subject(monkeypatch):
    features, devices = random_features(0, [3] * 20), []
    made = Tiles.__init__
    monkeypatch.setattr(Tiles, "__init__", lambda self, *a, **o: (devices.append(o["device"]), made(self, *a, **o))[1])
    measured(replace(subject_of(features), device="cpu:0"))
    assert devices == ["cpu:0", "cpu:0"]


def test_an_encoder_that_never_hits_and_one_that_always_hits_are_measured():
    collapsed = FeatureSet(np.tile(np.eye(1, 4), (10, 1)), np.tile(np.eye(1, 4), (20, 1)), np.arange(20) // 2)
    found = measured(subject_of(collapsed))
    assert found.figures["calibration/text_to_image/brier_skill"] == 0  # nothing is right, the constant says so
    assert found.figures["calibration/text_to_image/brier"] < 0.01
    perfect = FeatureSet(np.eye(10), np.repeat(np.eye(10), 2, axis=0), np.arange(20) // 2)
    found = measured(subject_of(perfect))
    assert all(np.isfinite(value) for value in found.figures.values())
    assert found.figures["calibration/image_to_text/ece"] < 0.15  # Platt's targets stay below 1
    x = np.array([0.1, 0.2, 0.8, 0.9])
    parted = fit_platt(x, x > 0.5)
    assert np.isfinite(parted.slope) and parted(x[0]) < 0.3 < 0.7 < parted(x[-1])
    assert fit_platt(np.ones(4), x > 0.5)(np.ones(1)) == pytest.approx(0.5)


def test_options_are_refused_in_a_sentence():
    with pytest.raises(ConfigError, match="folds is 1; a map is judged on images it has not seen"):
        Calibration(folds=1)
    with pytest.raises(ConfigError, match="seed is -1"):
        Calibration(seed=-1)
    with pytest.raises(ConfigError, match="by is 'margin'. Known: cosine, lead"):
        chosen([Choice("calibration", {"by": "margin"})])
    with pytest.raises(DataError, match=r"of 4 different images or classes, fewer than folds \(5\).*folds=4"):
        measured(subject_of(random_features(0, [2] * 4)))


def test_errors_count_downwards_and_skill_upwards():
    names = Calibration().figures()
    assert [lower_is_better(f"val/{name}") for name in names] == [True, True, False] * 2


def test_the_section_and_the_chart_say_what_was_measured():
    features = random_features(3, [5] * 40)
    for by in ("lead", "cosine"):
        found = measured(subject_of(features), by=by)
        part = {"shards": ["mine"], **part_of(found)}
        section = sections({"evaluations": {"calibration": [part]}}, [])[0].parts[0][1]
        table = section.tables[0]
        rows = {row[0]: row[1 + table.head[1:].index("text to image")] for row in table.rows}
        skill = found.figures["calibration/text_to_image/brier_skill"]
        assert (
            rows["Brier skill"].startswith(f"{skill:.3f} (") and f" x {by} " in rows["log odds, fitted on all queries"]
        )
        assert rows["queries"] == "200" and rows["gallery"] == "40"


def measure_on_ranks():
    found = measured(subject_of(random_features(5, [5] * 60)))
    return dict(found.figures), dict(found.intervals), dict(found.shown)


def expect_equal_on(world_size):
    alone = measure_on_ranks()
    assert run(world_size, measure_on_ranks) == [alone] * world_size


def test_two_processes_measure_the_same_digits():
    expect_equal_on(2)


@pytest.mark.slow
def test_four_processes_measure_the_same_digits():
    expect_equal_on(4)
