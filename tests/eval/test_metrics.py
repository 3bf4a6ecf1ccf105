"""Figures of ranks, selections of a feature set, what it refuses, and the bootstrap."""

import numpy as np
import pytest
from feature_sets import random_features

from core.errors import DataError
from eval.metrics import FeatureSet, accuracy_interval, bootstrap, paired_bootstrap, recall_at_k, summarise
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


def test_an_accuracys_interval_is_the_bootstraps_without_drawing():
    is_right = np.random.default_rng(1).random(400) < 0.7
    drawn, counted = bootstrap(is_right, num_resamples=20000), accuracy_interval(is_right, num_resamples=20000)
    assert vars(counted) == pytest.approx(vars(drawn), abs=0.003)


def test_a_mean_over_classes_draws_within_each_class():
    rng = np.random.default_rng(2)
    classes = np.repeat([3, 5, 9], [20, 200, 60])
    is_right = rng.random(280) < np.repeat([0.3, 0.8, 0.6], [20, 200, 60])
    means = [
        np.mean([rng.choice(is_right[classes == k], (classes == k).sum()).mean() for k in (3, 5, 9)])
        for _ in range(4000)
    ]
    found = accuracy_interval(is_right, classes, num_resamples=4000)
    assert found.estimate == pytest.approx(np.mean([is_right[classes == k].mean() for k in (3, 5, 9)]))
    assert (found.low, found.high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.01)


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
