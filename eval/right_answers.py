"""Which captions are right for which pictures of a shard set, beyond those that a picture has itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from core.class_captions import CLASS_NAMES, answer_ids
from core.shard_set import ShardSet
from eval.features import Extracted
from eval.metrics import RightAnswers

EQUAL_CAPTIONS = "equal captions"


def with_class_answers(extracted: Extracted, shard_set: ShardSet, is_trained: bool) -> Extracted:
    """Features in which captions made from class names are right for every picture of their class.

    Without that, a perfect classifier would fail wherever two pictures share a class. Other captions stay right for
    their own picture alone, as VSE++ and CLIP_benchmark have it.

    Args:
        is_trained: a text tower embedded the captions just now: equal ones then differ by rounding, and get the first
            one's embedding, so that they tie and are counted once.
    """
    if not shard_set.class_captions:
        return extracted
    features = extracted.features
    if is_trained:
        first: dict[str, int] = {}
        own = [first.setdefault(text, row) for row, text in enumerate(captions_of(extracted, shard_set))]
        features = replace(features, texts=features.texts[own])
    answer = np.unique(answer_ids(shard_set, extracted.samples), return_inverse=True)[1]
    right = RightAnswers(CLASS_NAMES, answer[features.image_of_text], np.arange(len(answer)), answer)
    return replace(extracted, features=replace(features, more_right=right))


def with_equal_captions(extracted: Extracted, captions: list[str]) -> Extracted:
    """Features in which a caption is right, too, wherever another one that equals it letter for letter is.

    Args:
        captions: `(T,)` the texts themselves.
    """
    features = extracted.features
    known = features.right
    number: dict[str, int] = {}
    says = np.array([number.setdefault(caption, len(number)) for caption in captions])
    images_of: dict[int, list[int]] = {}
    for image, held in zip(known.images.tolist(), known.holds.tolist(), strict=True):
        images_of.setdefault(held, []).append(image)
    said = {*zip(says.tolist(), known.says.tolist(), strict=True)}
    images, holds = np.array(sorted({(image, caption) for caption, held in said for image in images_of[held]})).T
    kind = f"{known.kind}, {EQUAL_CAPTIONS}" if known.kind else EQUAL_CAPTIONS
    return replace(extracted, features=replace(features, more_right=RightAnswers(kind, says, images, holds)))


def captions_of(extracted: Extracted, shard_set: ShardSet) -> list[str]:
    """`(T,)` the texts of the features' captions."""
    known: tuple[int, list[str]] = (-1, [])
    captions = []
    for sample, place in extracted.captions.tolist():
        if sample != known[0]:
            known = sample, shard_set.captions(sample)
        captions.append(known[1][place])
    return captions
