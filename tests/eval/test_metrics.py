"""Figures of ranks, selections of a feature set, what it refuses, and the bootstrap."""

import numpy as np
import pytest
from feature_sets import random_features

from core.errors import DataError
from eval.metrics import (
    FeatureSet,
    Interval,
    bootstrap,
    mean_over_classes,
    never_certain,
    paired_bootstrap,
    recall_at_k,
    share_interval,
    summarise,
)
from eval.ranks import retrieval_ranks


def test_the_summary_of_known_ranks():
    features = FeatureSet(np.eye(4), np.eye(4)[[0, 1, 2, 2]], np.array([0, 1, 2, 3]))  # text 3 describes image 2 better
    summary = summarise(retrieval_ranks(features))
    assert summary["text_to_image"]["recall@1"] == 0.75
    assert summary["text_to_image"]["mean_rank"] == (1 + 1 + 1 + 4) / 4
    assert summary["text_to_image"]["map@10"] == (3 + 1 / 4) / 4
    assert summary["image_to_text"]["recall@1"] == 0.5  # image 2 ties with text 3; image 3 scores 0 with every text
    assert list(summary["image_to_text"]) == ["recall@1", "recall@5", "recall@10", "median_rank", "mean_rank", "map@10"]


def test_selected_images_keep_their_own_captions():
    features = random_features(0, [3, 1, 7, 2])
    chosen = features.select(np.array([2, 0]), max_captions=2)
    assert list(chosen.captions_per_image()) == [2, 2]
    np.testing.assert_array_equal(chosen.images, features.images[[2, 0]])
    first_two = np.flatnonzero(features.image_of_text == 2)[:2]
    np.testing.assert_array_equal(chosen.texts[chosen.image_of_text == 0], features.texts[first_two])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i, t, o: (np.where(np.arange(4)[:, None] == 2, np.nan, i), t, o), "Image row 2 holds NaN or infinity"),
        (lambda i, t, o: (i, np.where(np.arange(4)[:, None] == 1, np.inf, t), o), "Text row 1 holds NaN or infinity"),
        (lambda i, t, o: (i * 2, t, o), "Image row 0 has length 2 .* Divide each row by its norm"),
        (lambda i, t, o: (i, t, np.array([0, 1, 2, 2])), "Image row 3 has no text"),
        (lambda i, t, o: (i, t, np.array([0, 1, 2, 4])), "Text row 3 names image 4"),
        (lambda i, t, o: (i, t[:, :3], o), "Image features are 4 wide, text features 3"),
        (lambda i, t, o: (i, t, o[:3]), r"4 texts need \(4,\)"),
        (lambda i, t, o: (i[:0], t, o), "not empty"),
    ],
)
def test_broken_features_are_refused(change, message):
    with pytest.raises(DataError, match=message):
        FeatureSet(*change(np.eye(4), np.eye(4), np.arange(4)))


def test_the_bootstrap_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(100):
        interval = bootstrap(rng.random(200) < 0.3, num_resamples=300, seed=trial)
        covered += interval.low <= 0.3 <= interval.high
    assert 88 <= covered <= 100


def test_an_accuracys_interval_is_about_the_bootstraps_and_holds_what_does_not_speak_against_it():
    is_right = np.random.default_rng(1).random(400) < 0.7
    found = share_interval(is_right)
    assert vars(found) == pytest.approx(vars(bootstrap(is_right, num_resamples=20000)), abs=0.004)
    # Wilson 1927: a share p is kept while the one found is at most 1.96 standard deviations of p away.
    for answers in (is_right, np.ones(3), np.zeros(20), np.arange(40) == 7):
        count, share, found = len(answers), np.mean(answers), share_interval(answers)
        kept = [p for p in np.linspace(0, 1, 200_001) if abs(share - p) <= 1.959964 * (p * (1 - p) / count) ** 0.5]
        assert (found.low, found.high) == pytest.approx((min(kept), max(kept)), abs=1e-5)


def test_all_right_answers_are_not_certainty():
    assert share_interval(np.ones(3)) == Interval(1.0, pytest.approx(0.4385, abs=1e-4), 1.0)
    captions = np.repeat(np.arange(30), 5)
    for share in (0, 1):
        by_image = share_interval(np.full(150, share), captions)
        assert vars(by_image) == pytest.approx(vars(share_interval(np.full(30, share))))  # as of 30 answers, not 150
    assert share_interval(np.full(8, 1.0) - np.eye(1, 8)[0] / 2).high < 1.1  # AP, of which one is 0.5: the bootstrap's
    assert never_certain(Interval(0.9, 0.9, 0.9), 5) == Interval(0.9, 0.9, 0.9)


def test_a_mean_over_classes_draws_within_each_class():
    rng = np.random.default_rng(2)
    classes = np.repeat([3, 5, 9], [20, 200, 60])
    is_right = rng.random(280) < np.repeat([0.3, 0.8, 0.6], [20, 200, 60])
    means = [
        np.mean([rng.choice(is_right[classes == k], (classes == k).sum()).mean() for k in (3, 5, 9)])
        for _ in range(4000)
    ]
    share, found = mean_over_classes(is_right, classes)
    assert share == found.estimate == pytest.approx(np.mean([is_right[classes == k].mean() for k in (3, 5, 9)]))
    assert (found.low, found.high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.01)


@pytest.mark.parametrize(("num_classes", "size", "low"), [(100, 2, 0.3), (100, 3, 0.3), (50, 5, 0.3), (100, 3, 0.97)])
def test_means_over_classes_of_few_pictures_are_held_as_often_as_they_say(num_classes, size, low):
    rng = np.random.default_rng(0)
    shares = rng.uniform(low, low + 0.3 if low < 0.7 else 1, num_classes)
    labels, held = np.repeat(np.arange(num_classes), size), 0
    for _ in range(400):
        _, found = mean_over_classes(rng.random(len(labels)) < shares[labels], labels)
        held += found.low <= shares.mean() <= found.high
    assert 0.925 <= held / 400 <= 0.98


def test_a_class_of_one_picture_leaves_the_mean_without_an_interval():
    assert mean_over_classes(np.array([1, 0, 1]), np.array([4, 4, 7])) == (0.75, None)
    share, found = mean_over_classes(np.ones(200), np.repeat(np.arange(100), 2))
    assert share == found.high == 1 and 0.97 < found.low < 0.99  # as of 200 answers that are all right


def test_very_many_groups_are_drawn_as_batches_and_the_interval_stays(monkeypatch):
    rng = np.random.default_rng(0)
    groups = rng.integers(30_000, size=60_000)
    values = rng.normal(size=60_000) + rng.normal(size=30_000)[groups]
    batched = bootstrap(values, groups)
    monkeypatch.setattr("eval.metrics._MOST_GROUPS", 10**9)
    monkeypatch.setattr("eval.metrics._DRAWN_AT_ONCE", 2**22)
    whole = bootstrap(values, groups)
    assert batched.estimate == whole.estimate
    assert batched.high - batched.low == pytest.approx(whole.high - whole.low, rel=0.06)
    assert batched.low == pytest.approx(whole.low, abs=0.06 * (whole.high - whole.low))


def test_captions_that_move_together_widen_the_interval():
    hits = np.repeat(np.random.default_rng(0).random(100) < 0.5, 5)
    alone, by_image = bootstrap(hits), bootstrap(hits, np.repeat(np.arange(100), 5))
    assert by_image.high - by_image.low > 1.8 * (alone.high - alone.low)  # sqrt(5) = 2.2


def test_a_paired_interval_sees_a_gain_that_two_single_ones_hide():
    rng = np.random.default_rng(0)
    ranks_a = rng.integers(1, 20, 500)
    ranks_b = np.where(rng.random(500) < 0.05, 1, ranks_a)
    gain = paired_bootstrap(ranks_a, ranks_b, k=10)
    assert gain.low > 0
    assert gain.estimate == pytest.approx(recall_at_k(ranks_b, 10) - recall_at_k(ranks_a, 10))
    assert bootstrap(ranks_a <= 10).high > bootstrap(ranks_b <= 10).low
    same = paired_bootstrap(ranks_a, ranks_a, k=10)
    assert (same.estimate, same.low, same.high) == (0, 0, 0)


def test_runs_over_different_queries_are_not_compared():
    with pytest.raises(DataError, match="One run has 3 queries, the other 4"):
        paired_bootstrap(np.ones(3), np.ones(4), k=1)
