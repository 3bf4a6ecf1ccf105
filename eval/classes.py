"""What an evaluation says of classes: by prompts alone (zero-shot), and by labelled neighbours."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from eval.evaluations.evaluation import EmbedTexts, Prompts, Subject
from eval.evaluations.zero_shot import class_features, class_probabilities, in_blocks, score_labels, spoken_class
from eval.features import Pictures
from eval.gallery import GallerySource
from eval.report.exhibits import Shelf, show_neighbours


def class_vectors(classes: Sequence[str], templates: Sequence[str], embed_texts: EmbedTexts) -> np.ndarray:
    """`(K, D)` features of classes, by what their folders or labels are called."""
    return class_features([spoken_class(name) for name in classes], templates, embed_texts)


def zero_shot(
    pictures: Pictures,
    classes: Sequence[str],
    templates: Sequence[str],
    embed_texts: EmbedTexts,
    logit_scale: float,
    shelf: Shelf,
    count: int,
) -> dict[str, Any]:
    """Classes of images that have no labels: shares of each class and `count` examples to judge by eye (collective)."""
    images, features = pictures.images, class_vectors(classes, templates, embed_texts)

    def likeliest(part: slice) -> np.ndarray:
        return class_probabilities(images[part], features, logit_scale).argmax(axis=1)

    predicted = np.bincount(in_blocks(len(images), len(classes), likeliest), minlength=len(classes))
    shown = _drawn(len(images), count)
    probabilities = class_probabilities(images[shown], features, logit_scale)
    return {
        "classes": [spoken_class(name) for name in classes],
        "templates": list(templates),
        "shares": [round(float(share), 4) for share in predicted / predicted.sum()],
        "examples": _examples(probabilities, pictures.samples[shown], None, shelf),
    }


def zero_shot_labelled(
    pictures: Pictures,
    prompts: Prompts,
    classes: Sequence[str],
    templates: Sequence[str],
    logit_scale: float,
    shelf: Shelf,
    count: int,
) -> dict[str, Any]:
    """Accuracy over the classes of a labelled set (collective).

    Args:
        prompts: of the classes, and which of them each picture has; those without one are left out.
    """
    rows = np.flatnonzero(prompts.labels >= 0)
    labels, shown = prompts.labels[rows], _drawn(len(rows), count)
    probabilities = class_probabilities(pictures.images[rows[shown]], prompts.features, logit_scale)
    return {
        "classes": [spoken_class(name) for name in classes],
        "templates": list(templates),
        **score_labels(pictures.images, rows, prompts.features, labels),
        "examples": _examples(probabilities, pictures.samples[rows[shown]], labels[shown], shelf),
    }


def neighbours(
    subject: Subject,
    samples: np.ndarray,
    classes: Sequence[str],
    source: GallerySource | None,
    own: Shelf,
    others: Shelf,
    count: int,
) -> dict[str, Any]:
    """What k-NN compared with, and `count` examples; its figures stand with all others."""
    assert subject.labels is not None
    return {
        "num_images": int((subject.labels >= 0).sum()),
        "num_classes": len(classes),
        "labels": labels_stamp(subject),
        "gallery": source.describe() if source else "leave-one-out",
        "neighbours": show_neighbours(subject, samples, classes, own, others, count=count),
    }


def labels_stamp(subject: Subject) -> str:
    """What two evaluations have in common where the same pictures are of the same classes."""
    assert subject.labels is not None
    named = [subject.classes[label] if label >= 0 else None for label in subject.labels]
    return hashlib.sha256(json.dumps([subject.samples.tolist(), named]).encode()).hexdigest()


def _drawn(num_pictures: int, count: int) -> np.ndarray:
    """`(count,)` at random, or all that there are."""
    return np.random.default_rng((0, 3)).permutation(num_pictures)[:count]


def _examples(
    probabilities: np.ndarray, samples: np.ndarray, labels: np.ndarray | None, shelf: Shelf
) -> list[dict[str, Any]]:
    return [
        {
            "picture": shelf.picture(int(samples[i])),
            "probabilities": [round(float(p), 4) for p in probabilities[i]],
            "right": None if labels is None else int(labels[i]),
        }
        for i in range(len(samples))
    ]
