"""Ranks of COCO's validation set of 2014, 40,504 pictures and 202,654 captions, held against plain counting."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from benchmarks.gpu.measure import Context, Figures

_WIDTH, _LOOKED_AT = 512, 32
_NOISE = 10.0  # own pairs have a cosine of 0.1, two or three deviations above others: ranks of all sizes


def ranks(context: Context) -> Figures:
    """Time of the ranks in both directions, and how far some of them are from those counted in float64."""
    features = _features(*context.size.num_ranked)
    began = time.perf_counter()
    found = _ranks(features, context.device)
    seconds = time.perf_counter() - began
    some = np.linspace(0, len(features.images) - 1, _LOOKED_AT).astype(int)
    off = max(_off(features, found, image) for image in some)
    return {
        "pictures": len(features.images), "captions": len(features.texts), "seconds": seconds,
        "largest_difference": off, "median_rank": float(np.median(found.text_to_image)),
    }  # fmt: skip


def _ranks(features: Any, device: str) -> Any:
    """The product's call."""
    import torch

    from eval.ranks import retrieval_ranks

    return retrieval_ranks(features, torch.device(device))


def _features(num_images: int, num_texts: int) -> Any:
    from eval.metrics import FeatureSet

    random = np.random.default_rng(0)
    images = _unit(random.standard_normal((num_images, _WIDTH), dtype=np.float32))
    own = np.arange(num_texts) % num_images
    noise = _unit(random.standard_normal((num_texts, _WIDTH), dtype=np.float32))
    return FeatureSet(images, _unit(images[own] + _NOISE * noise), own)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _off(features: Any, found: Any, image: int) -> int:
    """The difference in rank of one picture and its first caption; ties count against, as in the product."""
    captions = np.flatnonzero(features.image_of_text == image)
    to_texts = features.texts.astype(np.float64) @ features.images[image].astype(np.float64)
    wrong = np.delete(to_texts, captions)
    best = 1 + min(int((wrong >= to_texts[caption]).sum()) for caption in captions)
    to_images = features.images.astype(np.float64) @ features.texts[captions[0]].astype(np.float64)
    own = int((to_images >= to_images[image]).sum())
    return max(abs(best - int(found.image_to_text[image])), abs(own - int(found.text_to_image[captions[0]])))
