"""The modality gap against direct formulas: all pairs, one at a time."""

import math
import tracemalloc
from itertools import combinations

import numpy as np
import pytest
from feature_sets import random_features, unit
from gloo import run

from core.errors import ConfigError, DataError
from eval.evaluations import measure_all
from eval.evaluations.evaluation import Subject
from eval.evaluations.modality_gap import ModalityGap, distance_interval, drawn, principal_map, uniformity
from eval.metrics import FeatureSet, Ranks, RightAnswers
from eval.ranks import retrieval_ranks
from trainer.telemetry.health import alignment, uniformity_potential
from trainer.telemetry.names import lower_is_better


def measured(features, **options):
    subject = Subject(features.images, pairs=features, ranks=retrieval_ranks(features))
    return measure_all({"modality_gap": ModalityGap(**options)}, subject)["modality_gap"]


def two_cones(gap, seed=0, num_images=30, captions=5, width=16):
    """Pictures and captions, apart along one direction."""
    features = random_features(seed, [captions] * num_images, width)
    line = np.eye(width)[0] * gap
    return FeatureSet(unit(features.images + line), unit(features.texts - line), features.image_of_text)


def of_classes(features, num_classes=4):
    """The same where a text is right for every image of its class."""
    says = features.image_of_text % num_classes
    rows = np.arange(len(features.images))
    right = RightAnswers("every sample of a class is right", says, rows, rows % num_classes)
    return FeatureSet(features.images, features.texts, features.image_of_text, right)


@pytest.mark.parametrize("features", [two_cones(0.8), two_cones(0.0, seed=1), of_classes(two_cones(0.5, seed=2))])
def test_figures_are_those_of_loops_over_all_pairs(features):
    images, texts = features.images.astype(float), features.texts.astype(float)
    found = measured(features).figures
    one, other = images.mean(axis=0), texts.mean(axis=0)
    assert found["modality_gap/distance"] == pytest.approx(math.dist(one, other))
    is_right = np.array([[bool(features.right.are_right(i, np.array([t]))[0]) for t in range(150)] for i in range(30)])
    cosines = [[float(image @ text) for text in texts] for image in images]
    own = [cosines[i][t] for t, i in enumerate(features.image_of_text)]
    wrong = [cosines[i][t] for i in range(30) for t in range(150) if not is_right[i, t]]
    assert found["modality_gap/cosine_of_pairs"] == pytest.approx(np.mean(own))
    assert found["modality_gap/cosine_of_others"] == pytest.approx(np.mean(wrong))
    squares = [math.dist(images[i], texts[t]) ** 2 for t, i in enumerate(features.image_of_text)]
    assert found["modality_gap/alignment"] == pytest.approx(np.mean(squares), rel=1e-5)
    for name, rows in (("image", images), ("text", texts)):
        potentials = [math.exp(-2 * math.dist(x, y) ** 2) for x, y in combinations(rows, 2)]
        assert found[f"modality_gap/uniformity_{name}"] == pytest.approx(math.log(np.mean(potentials)), rel=1e-5)
    # Every picture as often as there are captions of it: then both kinds weigh the same in one cloud.
    cloud = np.concatenate([np.repeat(images, 5, axis=0), texts])
    cloud -= cloud.mean(axis=0)
    along = cloud @ ((one - other) / math.dist(one, other))
    share = along.var() / cloud.var(axis=0).sum()
    assert found["modality_gap/variance_share"] == pytest.approx(share, rel=1e-6)


def test_alignment_and_uniformity_are_those_that_training_follows():
    import torch

    features = two_cones(0.5, captions=1)
    images = torch.from_numpy(features.images)
    texts = torch.from_numpy(features.texts[np.argsort(features.image_of_text)])
    found = measured(features).figures
    assert found["modality_gap/alignment"] == pytest.approx(alignment(images, texts).item(), rel=1e-5)
    expected = uniformity_potential(images).log().item()
    assert found["modality_gap/uniformity_image"] == pytest.approx(expected, rel=1e-5)


def test_a_wider_gap_is_a_larger_distance_and_a_larger_share():
    near, far = measured(two_cones(0.2)).figures, measured(two_cones(3.0)).figures
    assert far["modality_gap/distance"] > 1.2 > 0.5 > near["modality_gap/distance"]
    assert far["modality_gap/variance_share"] > 2 * near["modality_gap/variance_share"]


def test_the_interval_of_the_distance_covers_that_of_the_source_images_come_from():
    width, gap = 8, np.eye(8)[0] * 0.4

    def draw(rng, count):
        images = rng.normal(size=(count, width))
        texts = np.repeat(images, 3, axis=0) + rng.normal(size=(3 * count, width))
        return FeatureSet(unit(images + gap), unit(texts - gap), np.repeat(np.arange(count), 3))

    whole = draw(np.random.default_rng(99), 100_000)
    truth = np.linalg.norm(whole.images.mean(axis=0, dtype=float) - whole.texts.mean(axis=0, dtype=float))
    intervals = [distance_interval(draw(np.random.default_rng(seed), 60)) for seed in range(60)]
    covered = np.mean([interval.low <= truth <= interval.high for interval in intervals])
    assert covered >= 0.87  # 95 % but for chance
    assert all(interval.low < interval.estimate < interval.high for interval in intervals)


def test_a_distance_that_chance_makes_reaches_down_to_0():
    def draw(seed, gap):
        rng, line = np.random.default_rng(seed), np.eye(64)[0] * gap
        images, texts = rng.normal(size=(100, 64)) + line, rng.normal(size=(500, 64))
        return distance_interval(FeatureSet(unit(images), unit(texts), np.arange(500) // 5))

    apart = [draw(seed, 0.0) for seed in range(15)]
    assert all(0.05 < interval.estimate < 0.2 for interval in apart)  # some sqrt(1 / 100 + 1 / 500) = 0.11
    assert np.mean([interval.low == 0 for interval in apart]) >= 0.8  # 97 % but for chance
    assert all(draw(seed, 3.0).low > 0.1 for seed in range(3))


def test_more_groups_than_are_drawn_one_by_one_give_the_same_interval(monkeypatch):
    features = two_cones(0.3, num_images=3000, captions=2)
    batched = distance_interval(features)
    monkeypatch.setattr("eval.evaluations.modality_gap._BATCHES", 10**6)
    whole = distance_interval(features)
    assert batched.estimate == whole.estimate
    assert batched.high - batched.low == pytest.approx(whole.high - whole.low, rel=0.1)


def test_blocks_change_no_figure(monkeypatch):
    features = of_classes(two_cones(0.5, seed=2))
    whole = measured(features)
    monkeypatch.setattr("eval.evaluations.modality_gap._ROWS_AT_ONCE", 3)
    monkeypatch.setattr("eval.evaluations.modality_gap._BLOCK_BYTES", 16 * 30 * 4)
    parts = measured(features)
    assert dict(parts.figures) == pytest.approx(dict(whole.figures), rel=1e-6)
    assert parts.shown["cosines"] == whole.shown["cosines"]


def test_features_are_never_copied_as_a_whole():
    features = two_cones(0.4, num_images=20_000, captions=2, width=128)  # 10 and 20 MB
    subject = Subject(features.images, pairs=features, ranks=Ranks(*[np.ones(1)] * 4))
    gap = ModalityGap(most=500, num_others=100_000)
    tracemalloc.start()
    gap.measure(subject)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6, peak  # whole copies in float64 are 80 MB, sums of every image 41 MB more


def test_blocks_and_draws_of_uniformity():
    rows = two_cones(0.1).texts
    assert len(drawn(rows, 20, 0)) == 20 and drawn(rows, 150, 0) is rows
    np.testing.assert_array_equal(drawn(rows, 20, 4), drawn(rows, 20, 4))
    assert uniformity(np.tile(rows[:1], (5, 1))) == pytest.approx(0, abs=1e-5)
    big = unit(np.random.default_rng(0).normal(size=(1100, 6)))  # three blocks
    squares = ((big[:, None] - big[None]) ** 2).sum(axis=2)
    potential = np.exp(-2 * squares)[~np.eye(1100, dtype=bool)].mean()
    assert uniformity(big) == pytest.approx(np.log(potential), rel=1e-4)


def test_the_map_is_the_projection_that_keeps_most_and_its_signs_are_fixed():
    decomposition = pytest.importorskip("sklearn.decomposition")
    features = two_cones(1.0)
    found = principal_map(features.images, features.texts)
    peer = decomposition.PCA(2, svd_solver="full").fit(np.concatenate([features.images, features.texts]))
    places = peer.transform(np.concatenate([features.images, features.texts]))
    ours = np.array(found["images"] + found["texts"])
    np.testing.assert_allclose(np.abs(ours), np.abs(places), atol=2e-4)
    np.testing.assert_allclose(found["shares"], peer.explained_variance_ratio_, atol=1e-4)


def test_what_is_shown_holds_pairs_and_wrong_ones_alone():
    features = of_classes(two_cones(0.3))
    cosines = measured(features, num_others=4000).shown["cosines"]
    assert sum(cosines["pairs"]) == 150 and 2800 < sum(cosines["others"]) < 3200  # three of four are of another class
    assert len(cosines["edges"]) == len(cosines["pairs"]) + 1
    for option, value in (("most", 1), ("most", 10**7), ("num_points", 20_000), ("num_others", 10**12)):
        with pytest.raises(ConfigError, match=rf"modality_gap: {option} is {value:,}\. Give \d+ to [0-9,]+0,000"):
            ModalityGap(**{option: value})
    with pytest.raises(ConfigError, match="seed is -1"):
        ModalityGap(seed=-1)
    assert lower_is_better("val/modality_gap/distance") and not lower_is_better("val/modality_gap/cosine_of_pairs")


def test_one_picture_has_no_uniformity_and_is_refused():
    alone = FeatureSet(np.eye(1, 4), np.eye(1, 4), np.array([0]))
    with pytest.raises(DataError, match=r"modality_gap: the set has 1 picture.* Measure 2 or more"):
        measured(alone)
    two = FeatureSet(np.eye(2, 4), np.eye(2, 4), np.arange(2))
    assert all(np.isfinite(value) for value in measured(two).figures.values())


def measure_on_ranks():
    found = measured(two_cones(0.4, num_images=700))
    return dict(found.figures), dict(found.intervals), dict(found.shown)


def expect_equal_on(world_size):
    alone = measure_on_ranks()
    assert run(world_size, measure_on_ranks) == [alone] * world_size


def test_two_processes_measure_the_same_digits():
    expect_equal_on(2)


@pytest.mark.slow
def test_four_processes_measure_the_same_digits():
    expect_equal_on(4)
