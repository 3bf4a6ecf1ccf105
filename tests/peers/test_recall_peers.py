"""Our recall is that of CLIP_benchmark and of mteb on the same vectors; where answers tie, ours is the lowest there is.

Both come with `make peers`, mteb also with `pip install 'shardclip[mteb]'`; without them this skips.
Ties are where protocols differ. CLIP_benchmark takes tied answers in the order of `torch.topk`, mteb the one whose name
is the last in the alphabet, so what a tie is worth there depends on how a set is ordered. Here a wrong answer that ties
with a right one stands before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from feature_sets import random_features, unit, with_right_answers
from PIL import Image

from eval.export.mteb import MtebModel
from eval.metrics import FeatureSet, summarise
from eval.ranks import retrieval_ranks
from trainer.telemetry.names import IMAGE_TO_TEXT, RECALL_KS, TEXT_TO_IMAGE, recall

Recalls = Mapping[str, Mapping[str, float]]
DIFFERING = [1 + n * n % 7 for n in range(50)]  # captions of an image
A_HAIR = 1e-3  # quantised similarities are eighths


def drawn(case: str, quantised: bool = False) -> FeatureSet:
    """Features by what is special about their right answers."""
    counts = {"one caption each": [1] * 50, "five each": [5] * 40}.get(case, DIFFERING)
    features = random_features(len(case), counts, 16, quantised)
    return with_right_answers(features, 1, statements=25) if case == "captions of several images" else features


CASES = ["one caption each", "five each", "differing numbers", "captions of several images"]


def right_pairs(features: FeatureSet) -> np.ndarray:
    """`(N, T)`, which texts are right for which images."""
    texts = np.arange(len(features.texts))
    return np.stack([features.right.are_right(image, texts) for image in range(len(features.images))])


def ours(features: FeatureSet) -> Recalls:
    """Of `shardclip eval`, recall alone."""
    found = summarise(retrieval_ranks(features))
    return {at: {recall(k): found[at][recall(k)] for k in RECALL_KS} for at in (IMAGE_TO_TEXT, TEXT_TO_IMAGE)}


def of_clip_benchmark(features: FeatureSet, lowered: float = 0.0) -> Recalls:
    """By its own functions, put together as its `evaluate` does.

    Args:
        lowered: taken off the similarity of every right answer.
    """
    module = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval", reason="no CLIP_benchmark: make peers")
    right = torch.from_numpy(right_pairs(features))
    scores = torch.from_numpy(features.images @ features.texts.T) - lowered * right

    def shares(scores: torch.Tensor, right: torch.Tensor) -> dict[str, float]:
        found = {k: module.batchify(module.recall_at_k, scores, right, 7, "cpu", k=k) for k in RECALL_KS}
        return {recall(k): (shares > 0).float().mean().item() for k, shares in found.items()}

    return {IMAGE_TO_TEXT: shares(scores, right), TEXT_TO_IMAGE: shares(scores.T, right.T)}


class Given:
    """Vectors that are there already: of a text that is a row's number, and of a picture whose size says it."""

    def __init__(self, features: FeatureSet) -> None:
        self.features = features
        self.pictures = [Image.new("RGB", (1 + n, 1)) for n in range(len(features.images))]
        self.texts = [str(n) for n in range(len(features.texts))]

    def encode_image(self, images: Sequence[Image.Image]) -> np.ndarray:
        return self.features.images[[image.width - 1 for image in images]]

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        return self.features.texts[[int(text) for text in texts]]


def of_mteb(features: FeatureSet) -> Any:
    """By `mteb.evaluate`, through what an exported encoder is handed to it as."""
    models = pytest.importorskip("mteb.models", reason="mteb is not installed: pip install 'shardclip[mteb]'")
    from mteb_tasks import hit_rates

    given = Given(features)
    model = MtebModel(given, models.ModelMeta.create_empty({"modalities": ["image", "text"]}))
    return hit_rates(model, given.pictures, given.texts, right_pairs(features))


def flat(recalls: Recalls) -> np.ndarray:
    """Six shares, in one order."""
    return np.array([recalls[at][recall(k)] for at in (IMAGE_TO_TEXT, TEXT_TO_IMAGE) for k in RECALL_KS])


@pytest.mark.parametrize("case", CASES)
def test_recall_is_that_of_clip_benchmark(case: str) -> None:
    features = drawn(case)
    found = flat(ours(features))
    assert found.min() > 0 and len(set(found)) > 3  # where all is found, or nothing, everyone agrees
    np.testing.assert_allclose(found, flat(of_clip_benchmark(features)), atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_ties_are_all_that_clip_benchmark_counts_otherwise(case: str) -> None:
    features = drawn(case, quantised=True)
    found, theirs = flat(ours(features)), flat(of_clip_benchmark(features))
    assert (found <= theirs + 1e-6).all() and (found < theirs - 1e-3).any()
    np.testing.assert_allclose(found, flat(of_clip_benchmark(features, lowered=A_HAIR)), atol=1e-6)


def test_a_collapsed_encoder_finds_nothing_here_and_something_there() -> None:
    same = np.repeat(unit(np.ones((1, 16))), 60, 0)
    features = FeatureSet(same[:20], same, np.arange(60) % 20)
    assert not flat(ours(features)).any() and flat(of_clip_benchmark(features)).all()


@pytest.mark.parametrize("case", CASES)
def test_recall_is_the_hit_rate_of_mteb(case: str) -> None:
    features = drawn(case)
    np.testing.assert_allclose(flat(ours(features)), flat(of_mteb(features)), atol=5.1e-6)  # it rounds to five digits


@pytest.mark.parametrize("case", CASES)
def test_ties_are_all_that_mteb_counts_otherwise(case: str) -> None:
    features = drawn(case, quantised=True)
    found, theirs = flat(ours(features)), flat(of_mteb(features))
    assert (found <= theirs + 5.1e-6).all() and (found < theirs - 1e-3).any()
    np.testing.assert_allclose(theirs, flat(by_name(features)), atol=5.1e-6)


def by_name(features: FeatureSet) -> Recalls:
    """mteb's order, written out: by similarity, then by the document's name, the last first; its names are in order."""
    right, similarity = right_pairs(features), features.images @ features.texts.T

    def shares(similarity: np.ndarray, right: np.ndarray) -> dict[str, float]:
        order = [np.lexsort((-np.arange(len(row)), -row)) for row in similarity]
        found = np.array([answers[ranked] for answers, ranked in zip(right, order, strict=True)])
        return {recall(k): float(found[:, :k].any(axis=1).mean()) for k in RECALL_KS}

    return {IMAGE_TO_TEXT: shares(similarity, right), TEXT_TO_IMAGE: shares(similarity.T, right.T)}
