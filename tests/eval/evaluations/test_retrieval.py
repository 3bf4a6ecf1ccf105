"""Protocols by name, and what queries find."""

import numpy as np
import pytest

import eval.evaluations.retrieval as retrieval
from core.errors import ConfigError, DataError
from eval.evaluations.retrieval import best_rows, caption_examples, evaluate_retrieval, image_examples, recall_intervals
from eval.features import Extracted
from eval.metrics import FeatureSet, summarise
from eval.ranks import retrieval_ranks


def features_of(num_images, captions, embed_dim=32, noise=1.5, seed=0):
    rng = np.random.default_rng(seed)
    image_of_text = np.repeat(np.arange(num_images), captions)
    images = rng.standard_normal((num_images, embed_dim))
    texts = images[image_of_text] + noise * rng.standard_normal((len(image_of_text), embed_dim))
    return FeatureSet(*(rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (images, texts)), image_of_text)


def extracted_of(features):
    place = np.concatenate([np.arange(n) for n in features.captions_per_image()])
    captions = np.stack([100 + features.image_of_text, place], axis=1)
    return Extracted(features, 100 + np.arange(len(features.images)), captions, 20.0)


@pytest.fixture
def small_coco(monkeypatch):
    monkeypatch.setattr(retrieval, "COCO_IMAGES", 50)


def test_the_full_protocol_names_its_gallery():
    features = features_of(30, 5)
    result = evaluate_retrieval(features, retrieval_ranks)
    assert result["protocol"] == "full gallery: 30 images x 150 captions"
    expected = summarise(retrieval_ranks(features))
    assert result["text_to_image"] == expected["text_to_image"]


def test_a_tiny_gallery_says_which_recalls_mean_nothing():
    result = evaluate_retrieval(features_of(6, 2), retrieval_ranks)
    assert result["protocol"].endswith("with so few images, text_to_image recall@10 cannot fail")


def test_coco_1k_is_the_mean_over_five_galleries_of_successive_images(small_coco):
    features = features_of(53, 6)  # a sixth caption and three images too many
    result = evaluate_retrieval(features, retrieval_ranks, "coco-1k-5fold")
    assert result["protocol"].startswith("COCO 1k, mean of 5 folds, each: 10 images x 50 captions")
    folds = []
    for fold in range(5):
        rows = np.arange(10 * fold, 10 * fold + 10)
        texts = np.concatenate([np.flatnonzero(features.image_of_text == i)[:5] for i in rows])
        gallery = FeatureSet(features.images[rows], features.texts[texts], np.repeat(np.arange(10), 5))
        folds.append(summarise(retrieval_ranks(gallery)))
    for direction in ("image_to_text", "text_to_image"):
        for name, value in result[direction].items():
            assert value == pytest.approx(np.mean([fold[direction][name] for fold in folds])), name


def test_coco_5k_takes_the_first_images_with_five_captions(small_coco):
    result = evaluate_retrieval(features_of(60, 7), retrieval_ranks, "coco-5k")
    assert result["protocol"] == "COCO 5k: 50 images x 250 captions"


def test_a_coco_protocol_refuses_a_smaller_set():
    with pytest.raises(DataError, match=r"Protocol 'coco-5k' needs 5,000 images, the set has 30"):
        evaluate_retrieval(features_of(30, 5), retrieval_ranks, "coco-5k")


def test_flickr8k_1k_is_the_whole_test_split(monkeypatch):
    monkeypatch.setattr(retrieval, "FLICKR8K_IMAGES", 30)
    features = features_of(30, 5)
    result = evaluate_retrieval(features, retrieval_ranks, "flickr8k-1k")
    assert result["protocol"] == "Flickr8k 1k: 30 images x 150 captions"
    assert result["image_to_text"] == summarise(retrieval_ranks(features))["image_to_text"]


@pytest.mark.parametrize(("num_images", "captions"), [(999, 5), (1001, 5), (1000, 4), (1000, [4, 6] * 500)])
def test_flickr8k_1k_refuses_other_sizes(num_images, captions):
    with pytest.raises(
        DataError, match=r"needs 1,000 images with 5 captions each, the set has [\d,]+ with [\d,]+ in all"
    ):
        evaluate_retrieval(features_of(num_images, captions), retrieval_ranks, "flickr8k-1k")


def test_an_unknown_protocol_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown protocol 'coco5k'. Did you mean 'coco-5k'"):
        evaluate_retrieval(features_of(30, 5), retrieval_ranks, "coco5k")


def test_intervals_hold_the_recall_they_belong_to():
    features = features_of(80, 3)
    ranks = retrieval_ranks(features)
    summary = summarise(ranks)
    for direction, intervals in recall_intervals(features, ranks).items():
        for k, interval in intervals.items():
            assert interval["estimate"] == pytest.approx(summary[direction][f"recall@{k}"])
            assert interval["low"] <= interval["estimate"] <= interval["high"]


def test_best_rows_are_the_nearest_best_first():
    rng = np.random.default_rng(0)
    queries, gallery = rng.standard_normal((3, 8)), rng.standard_normal((20, 8)).astype(np.float32)
    rows, scores = best_rows(queries, gallery, 5)
    for query, found, score in zip(queries, rows, scores, strict=True):
        expected = sorted(range(20), key=lambda i: -float(query @ gallery[i]))[:5]
        assert list(found) == expected
        assert list(score) == sorted(score, reverse=True)


def test_equal_captions_are_drawn_once_and_found_once_with_the_best_score():
    features = features_of(40, 3, noise=2.5)
    extracted, ranks = extracted_of(features), retrieval_ranks(features)

    def text_of(row):  # seven texts over 120 captions
        return f"a photo of {row % 7}"

    captions = caption_examples(extracted, ranks, count=40, k=5, text_of=text_of)
    drawn = [text_of(3 * (e["text"]["sample"] - 100) + e["text"]["place"]) for e in captions]
    assert sorted(drawn) == sorted({text_of(row) for row in range(0, 120, 3)})
    for example in image_examples(extracted, ranks, count=40, k=5, text_of=text_of):
        image = example["sample"] - 100
        best, right = {}, set()
        for row in range(120):  # all captions, one by one
            score = float(features.texts[row] @ features.images[image])
            best[text_of(row)] = max(score, best.get(text_of(row), -2))
            if features.image_of_text[row] == image:
                right.add(text_of(row))
        expected = sorted(best.items(), key=lambda pair: -pair[1])[:5]
        found = example["answers"]
        texts = [text_of(3 * (a["text"]["sample"] - 100) + a["text"]["place"]) for a in found]
        assert texts == [text for text, _ in expected]
        assert [a["score"] for a in found] == pytest.approx([score for _, score in expected], abs=1e-6)
        assert [a["is_right"] for a in found] == [text in right for text in texts]


def test_examples_call_right_what_is_right_and_agree_with_the_ranks():
    features = features_of(40, 3, noise=2.5)
    extracted, ranks = extracted_of(features), retrieval_ranks(features)
    examples = caption_examples(extracted, ranks, count=40, k=5, text_of=str)
    assert {example["rank"] for example in examples} - {1}, "the noise must leave some wrong"
    for example in examples:
        right = [answer["is_right"] for answer in example["answers"]]
        assert right.index(True) + 1 == example["rank"] if example["rank"] <= 5 else not any(right)
        shown = [answer["sample"] for answer in example["answers"] if answer["is_right"]]
        assert shown in ([], [example["text"]["sample"]])
    for example in image_examples(extracted, ranks, count=40, k=5, text_of=str):
        right = [answer["is_right"] for answer in example["answers"]]
        assert right.index(True) + 1 == example["rank"] if example["rank"] <= 5 else not any(right)
        assert all((a["text"]["sample"] == example["sample"]) == a["is_right"] for a in example["answers"])
