"""Ranks against double loops and the field's own protocols; any number of processes, any precision, little memory."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gloo
import numpy as np
import pytest
import torch
from feature_sets import random_features, slow_ranks, unit, with_right_answers
from hypothesis import given, settings
from hypothesis import strategies as st

import eval.counting
from core.distributed import rank
from core.errors import DataError
from eval.counting import Tile
from eval.metrics import FeatureSet, RightAnswers, median_rank, summarise
from eval.ranks import retrieval_ranks

ROOT = Path(__file__).resolve().parents[2]


captions_per_image = st.lists(st.integers(1, 7), min_size=1, max_size=12)
tiles = st.builds(Tile, st.integers(1, 14), st.integers(1, 90))


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 10_000), captions_per_image, st.sampled_from([4, 16]), st.booleans(), tiles)
def test_ranks_equal_the_double_loop(seed, counts, embed_dim, quantised, tile):
    assert_ranked_as_defined(random_features(seed, counts, embed_dim, quantised), tile)


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 10_000), captions_per_image, st.sampled_from([4, 16]), st.booleans(), st.integers(1, 9), tiles)
def test_so_they_do_where_texts_are_right_for_further_images(seed, counts, embed_dim, quantised, statements, tile):
    """Texts that say the same, and images of which several things hold: classes and equal captions are among these."""
    features = random_features(seed, counts, embed_dim, quantised)
    assert_ranked_as_defined(with_right_answers(features, seed, statements), tile)


def assert_ranked_as_defined(features, tile=None):
    ranks = retrieval_ranks(features, tile=tile)
    image_to_text, text_to_image, average_precision, text_average_precision = slow_ranks(features)
    np.testing.assert_array_equal(ranks.image_to_text, image_to_text)
    np.testing.assert_array_equal(ranks.text_to_image, text_to_image)
    np.testing.assert_allclose(ranks.average_precision, average_precision, rtol=1e-12)
    np.testing.assert_allclose(ranks.text_average_precision, text_average_precision, rtol=1e-12)


def test_a_perfect_classifier_of_class_folders_is_right_everywhere():
    """Four pictures of each class share the caption that its name made: only among their own would they fail."""
    classes = np.repeat(np.arange(5), 4)
    directions = unit(np.random.default_rng(0).standard_normal((5, 64)))
    captions_alone = FeatureSet(directions[classes], directions[classes], np.arange(20))
    right = RightAnswers("classes", classes, np.arange(20), classes)
    by_class = replace(captions_alone, more_right=right)
    for direction in ("image_to_text", "text_to_image"):
        assert summarise(retrieval_ranks(captions_alone))[direction]["recall@1"] == 0
        assert summarise(retrieval_ranks(by_class))[direction] == {
            "recall@1": 1, "recall@5": 1, "recall@10": 1, "median_rank": 1, "mean_rank": 1, "map@10": 1
        }  # fmt: skip


def test_the_random_cases_do_hold_ties():
    features = random_features(3, [5] * 12, embed_dim=4, quantised=True)
    similarity = features.images @ features.texts.T
    assert len(np.unique(similarity)) < similarity.size / 10


@pytest.mark.parametrize("embed_dim", [16, 384, 513])
def test_a_collapsed_encoder_is_last_everywhere(embed_dim):
    """All features equal: every answer ties, and no rounding in the matrix product may break a tie."""
    for seed in range(20):  # how a product rounds depends on the numbers, too
        direction = unit(np.random.default_rng(seed).standard_normal((1, embed_dim)))
        features = FeatureSet(np.repeat(direction, 37, 0), np.repeat(direction, 111, 0), np.arange(111) % 37)
        ranks = retrieval_ranks(features, tile=Tile(5, 7))
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


@pytest.mark.parametrize("captions", [1, 9, 40])
def test_captions_that_many_images_share_have_a_rank_for_each(captions):
    """More pairs on one line of the matrix than are compared at once, on either side."""
    rng = np.random.default_rng(captions)
    images, texts = np.sign(rng.standard_normal((30, 16))), np.sign(rng.standard_normal((4, 16)))
    image_of_text = np.repeat(np.arange(30), captions)
    features = FeatureSet(unit(images), unit(texts[rng.integers(4, size=30 * captions)]), image_of_text)
    for tile in (Tile(7, 2), Tile(128, 2048)):
        ranks = retrieval_ranks(features, tile=tile)
        for found, expected in zip(as_tuple(ranks), slow_ranks(features), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-12)


def as_tuple(ranks):
    return ranks.image_to_text, ranks.text_to_image, ranks.average_precision, ranks.text_average_precision


def uneven_features():
    """Near-ties by the thousand: features hardly differ, so that another rounding would be another rank."""
    rng = np.random.default_rng(0)
    own = np.repeat(np.arange(300), rng.integers(1, 8, 300))
    common = rng.standard_normal((1, 64))
    images = common + 1e-3 * rng.standard_normal((300, 64))
    texts = common + 1e-3 * rng.standard_normal((len(own), 64))
    texts[own % 7 == 3] = texts[:1]  # and ties
    return FeatureSet(unit(images), unit(texts), own)


def counted_in_a_group():
    features = uneven_features()
    by_class = with_right_answers(features, 0, 20)
    ranked = [retrieval_ranks(given, tile=Tile(64, 96)) for given in (features, by_class)]
    return [values for ranks in ranked for values in as_tuple(ranks)]


@pytest.mark.parametrize("world_size", [2, 4])
def test_every_number_of_processes_counts_the_same_ranks(world_size):
    alone = counted_in_a_group()
    for found in gloo.run(world_size, counted_in_a_group):
        for a, b in zip(alone, found, strict=True):
            np.testing.assert_array_equal(a, b)


def test_no_switch_of_the_process_lowers_the_precision_of_the_product():
    expected = counted_in_a_group()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            found = counted_in_a_group()
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_array_equal(a, b)


def count_with_a_fault():
    if rank() == 1:
        eval.counting.full_float32 = None  # the share of this rank alone fails
    retrieval_ranks(uneven_features(), tile=Tile(64, 96))


def test_a_fault_in_one_share_is_told_to_all_instead_of_leaving_them_waiting():
    with pytest.raises(RuntimeError) as raised:
        gloo.run(2, count_with_a_fault, timeout_s=60)
    said = str(raised.value)
    assert "DistributedError: Rank 1 could not do its share: TypeError: 'NoneType'" in said
    assert "rank 1:" in said and "Timeout" not in said


def test_sets_too_large_to_be_counted_exactly_are_refused(monkeypatch):
    monkeypatch.setattr(eval.counting, "_MOST_ROWS", 60)
    retrieval_ranks(random_features(0, [5] * 11))
    with pytest.raises(DataError, match="60 rows to rank: at most 59 can be counted"):
        retrieval_ranks(random_features(0, [5] * 12))


MEASURE = """
import json, resource, sys
import numpy as np, torch
from eval.metrics import FeatureSet
from eval.ranks import retrieval_ranks
torch.set_num_threads(1)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
def features(num_images):
    rng = np.random.default_rng(0)
    def unit(rows):
        for part in np.array_split(rows, 64):  # in place: what it took would hide what is measured
            part /= np.linalg.norm(part, axis=1, keepdims=True)
        return rows
    own = np.repeat(np.arange(num_images), 5)
    images, texts = (unit(rng.standard_normal((n, 32), dtype=np.float32)) for n in (num_images, len(own)))
    texts[1] = texts[0]  # rows that are scored once must not cost a copy of the others
    return FeatureSet(images, texts, own)
retrieval_ranks(features(200))
given = features(12_000)
before = peak()
retrieval_ranks(given)
print(json.dumps(peak() - before))
"""


def test_memory_above_the_features_is_a_small_part_of_the_similarities():
    done = subprocess.run([sys.executable, "-c", MEASURE], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) < 60, "MiB; all similarities are 2,747"
