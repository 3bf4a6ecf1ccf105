"""Ranks, recall and mAP against double loops and the field's own protocols; ties, collapse, NaN and bootstrap."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import DataError
from eval.metrics import (
    FeatureSet,
    bootstrap,
    median_rank,
    paired_bootstrap,
    recall_at_k,
    retrieval_ranks,
    summarise,
)


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def random_features(seed, captions_per_image, embed_dim=16, quantised=False, shuffle=True):
    """A set whose captions resemble their image; quantised features (signs over a square) tie often, and exactly."""
    rng = np.random.default_rng(seed)
    image_of_text = np.repeat(np.arange(len(captions_per_image)), captions_per_image)
    if shuffle:
        rng.shuffle(image_of_text)
    images = rng.standard_normal((len(captions_per_image), embed_dim))
    texts = images[image_of_text] + 1.5 * rng.standard_normal((len(image_of_text), embed_dim))
    if quantised:
        assert embed_dim in (4, 16), "1/sqrt(D) must be exact in binary"
        images, texts = np.sign(images), np.sign(texts)
    return FeatureSet(unit(images), unit(texts), image_of_text)


def slow_ranks(features):
    """The definition, one pair at a time: a wrong answer that scores at least as high stands before the right one."""
    similarity = features.images.astype(np.float64) @ features.texts.T.astype(np.float64)
    owner = features.image_of_text
    image_to_text, average_precision = [], []
    for i in range(len(features.images)):
        wrong = [similarity[i, t] for t in range(len(owner)) if owner[t] != i]
        right = sorted((similarity[i, t] for t in range(len(owner)) if owner[t] == i), reverse=True)
        ranks = [sum(w >= r for w in wrong) + nth for nth, r in enumerate(right, start=1)]
        image_to_text.append(ranks[0])
        hits = [nth / rank for nth, rank in enumerate(ranks, start=1) if rank <= 10]
        average_precision.append(sum(hits) / min(len(right), 10))
    text_to_image = []
    for t, own in enumerate(owner):
        text_to_image.append(
            1 + sum(similarity[j, t] >= similarity[own, t] for j in range(len(features.images)) if j != own)
        )
    return np.array(image_to_text), np.array(text_to_image), np.array(average_precision)


captions_per_image = st.lists(st.integers(1, 7), min_size=1, max_size=12)


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 10_000), captions_per_image, st.sampled_from([4, 16]), st.booleans(), st.integers(1, 2000))
def test_ranks_equal_the_double_loop(seed, counts, embed_dim, quantised, block_bytes):
    features = random_features(seed, counts, embed_dim, quantised)
    ranks = retrieval_ranks(features, block_bytes)
    image_to_text, text_to_image, average_precision = slow_ranks(features)
    np.testing.assert_array_equal(ranks.image_to_text, image_to_text)
    np.testing.assert_array_equal(ranks.text_to_image, text_to_image)
    np.testing.assert_allclose(ranks.average_precision, average_precision, rtol=1e-12)


def test_the_random_cases_do_hold_ties():
    features = random_features(3, [5] * 12, embed_dim=4, quantised=True)
    similarity = features.images @ features.texts.T
    assert len(np.unique(similarity)) < similarity.size / 10


@pytest.mark.parametrize("embed_dim", [16, 384, 513])
def test_a_collapsed_encoder_is_last_everywhere(embed_dim):
    """All features equal: every answer ties, and no rounding in the matrix product may break a tie."""
    direction = unit(np.random.default_rng(0).standard_normal((1, embed_dim)))
    features = FeatureSet(np.repeat(direction, 37, 0), np.repeat(direction, 111, 0), np.arange(111) % 37)
    ranks = retrieval_ranks(features, block_bytes=4 * 37 * 5)
    assert set(ranks.image_to_text) == {111 - 3 + 1}
    assert set(ranks.text_to_image) == {37}
    assert summarise(ranks)["text_to_image"]["recall@10"] == 0


def test_a_caption_shared_by_two_images_counts_against_both():
    images = unit(np.random.default_rng(1).standard_normal((40, 384)))
    texts = images.copy()
    texts[7] = texts[31]
    ranks = retrieval_ranks(FeatureSet(images, texts, np.arange(40)))
    assert ranks.image_to_text[31] == 2
    assert list(np.flatnonzero(ranks.image_to_text == 1)) == [i for i in range(40) if i not in (7, 31)]


def test_ranks_follow_the_queries_when_images_and_texts_are_shuffled():
    features = random_features(5, [1, 2, 3, 4, 5, 6, 7])
    rng = np.random.default_rng(0)
    image_order, text_order = rng.permutation(7), rng.permutation(28)
    new_row = np.argsort(image_order)
    shuffled = FeatureSet(
        features.images[image_order], features.texts[text_order], new_row[features.image_of_text[text_order]]
    )
    ranks, moved = retrieval_ranks(features), retrieval_ranks(shuffled)
    np.testing.assert_array_equal(moved.image_to_text, ranks.image_to_text[image_order])
    np.testing.assert_array_equal(moved.text_to_image, ranks.text_to_image[text_order])
    np.testing.assert_array_equal(moved.average_precision, ranks.average_precision[image_order])


def clip_benchmark_recall(scores, positives, k):
    """CLIP_benchmark's rule: the share of rows with any positive among their top k."""
    top = torch.topk(scores, k, dim=1).indices
    return (torch.gather(positives, 1, top).sum(1) > 0).float().mean().item()


def vse_ranks(images, texts):
    """VSE++'s i2t and t2i: five captions per image in order, sorted similarities, best of the five places."""
    similarity = images @ texts.T
    i2t = [min(np.flatnonzero(np.argsort(-row) // 5 == i)) for i, row in enumerate(similarity)]
    t2i = [np.flatnonzero(np.argsort(-column) == t // 5)[0] for t, column in enumerate(similarity.T)]
    return np.array(i2t), np.array(t2i)


@pytest.mark.parametrize("seed", range(3))
def test_recall_agrees_with_clip_benchmark_where_nothing_ties(seed):
    features = random_features(seed, np.random.default_rng(seed).integers(1, 8, 60), embed_dim=32)
    scores = torch.from_numpy(features.texts @ features.images.T)
    positives = torch.zeros_like(scores, dtype=torch.bool)
    positives[torch.arange(len(scores)), torch.from_numpy(features.image_of_text)] = True
    summary = summarise(retrieval_ranks(features))
    for k in (1, 5, 10):
        assert summary["text_to_image"][f"recall@{k}"] == pytest.approx(
            clip_benchmark_recall(scores, positives, k), abs=1e-6
        )
        expected = clip_benchmark_recall(scores.T, positives.T, k)
        assert summary["image_to_text"][f"recall@{k}"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_ranks_and_median_agree_with_vse(seed):
    features = random_features(seed, [5] * 40, embed_dim=32, shuffle=False)
    i2t, t2i = vse_ranks(features.images, features.texts)
    ranks = retrieval_ranks(features)
    np.testing.assert_array_equal(ranks.image_to_text, i2t + 1)
    np.testing.assert_array_equal(ranks.text_to_image, t2i + 1)
    assert median_rank(ranks.image_to_text) == np.floor(np.median(i2t)) + 1
    assert median_rank(ranks.text_to_image) == np.floor(np.median(t2i)) + 1


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
