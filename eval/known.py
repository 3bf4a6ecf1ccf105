"""What is known of a shard set before its features are, so that an evaluation can say early what it lacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from core.class_captions import answer_ids
from core.shard_set import ShardSet
from eval.evaluations.evaluation import Known, Shelf
from eval.gallery import GallerySource, joint_classes
from eval.labels import Labels


def known_of(
    shard_set: ShardSet,
    labels: Labels | None = None,
    gallery: GallerySource | None = None,
    *,
    compares_text: bool,
    captions: Mapping[int, Sequence[str]] | None = None,
    shelf: Shelf | None = None,
) -> Known:
    """Of a set that will be measured: pictures, classes and captions as extraction will find them. Reads no tar.

    Args:
        labels: where classes will be known; `gallery` beside them.
        captions: by sample number, in place of the set's own; pictures without are left out.
        shelf: shows the samples; None while training.
    """
    every = np.arange(len(shard_set)) if captions is None else np.array(list(captions))
    samples = _each_image_once(shard_set, every)
    classes = joint_classes(labels, gallery) if labels else ()
    gallery_labels = None
    if gallery is not None:
        of_gallery = _each_image_once(gallery.shard_set, gallery.samples)
        gallery_labels = gallery.labels.among(classes)[of_gallery]
    num_groups = len(samples) if captions is not None else len(np.unique(answer_ids(shard_set, samples)))

    def places() -> np.ndarray:
        own = [shard_set.captions(int(n)) if captions is None else captions[int(n)] for n in every]
        return np.array([(n, place) for n, texts in zip(every, own, strict=True) for place in range(len(texts))])

    return Known(
        len(samples),
        labels=labels.among(classes)[samples] if labels else None,
        classes=classes,
        gallery_labels=gallery_labels,
        num_groups=num_groups if compares_text else None,
        samples=samples,
        captions=places if compares_text else None,
        shelf=shelf,
    )


def _each_image_once(shard_set: ShardSet, samples: np.ndarray) -> np.ndarray:
    """The first of the samples that show an image, in their order: as features are assembled."""
    found: np.ndarray = samples[np.sort(np.unique(shard_set.image_ids(samples), return_index=True)[1])]
    return found
