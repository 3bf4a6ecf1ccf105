"""Features of a shard set's pictures with other captions than its own."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from core.shard_set import ShardSet
from eval.evaluations.evaluation import EmbedTexts
from eval.features import Extracted, Pictures
from eval.metrics import FeatureSet


def with_captions(
    pictures: Pictures, shard_set: ShardSet, captions: Mapping[int, list[str]], embed: EmbedTexts, logit_scale: float
) -> Extracted:
    """Features of those pictures that have captions, with these; samples that show one image are one, with all of them.

    Args:
        captions: by sample number.
        embed: by the encoder that the checkpoint was trained against.
    """
    ids = dict(zip(shard_set.image_ids(pictures.samples).tolist(), range(len(pictures.samples)), strict=True))
    samples = np.array(list(captions))
    row_of_sample = np.array([ids[i] for i in shard_set.image_ids(samples).tolist()])
    rows, image_of_sample = np.unique(row_of_sample, return_inverse=True)
    counts = np.array([len(own) for own in captions.values()])
    place = np.concatenate([np.arange(count) for count in counts])
    texts = embed([caption for own in captions.values() for caption in own]).astype(np.float32)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    features = FeatureSet(pictures.images[rows], texts, np.repeat(image_of_sample, counts))
    return Extracted(
        features, pictures.samples[rows], np.stack([np.repeat(samples, counts), place], axis=1), logit_scale
    )
