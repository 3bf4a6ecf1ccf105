"""Ranks of the right answers of a feature set, ties against the model; counted on a device by all ranks together.

Legend: `N` images, `T` texts, `P` distinct pairs of an image and its text, `C` captions of one image.
"""

from __future__ import annotations

import numpy as np
import torch

from eval.counting import Distinct, Pairs, Tile, count_at_least
from eval.metrics import FeatureSet, Ranks, by_image
from trainer.telemetry.names import AP_DEPTH

_CPU = torch.device("cpu")
_OWN_BLOCK = 4096  # pairs of an image and its own text that are multiplied at a time


def retrieval_ranks(features: FeatureSet, device: torch.device = _CPU, tile: Tile | None = None) -> Ranks:
    """Ranks in both directions, from one float32 product; the same digits for any number of ranks (collective).

    Args:
        features: the same on every rank.
        device: where this rank's share is multiplied and compared.
        tile: None: as suits the device.
    """
    images, texts = Distinct(features.images), Distinct(features.texts)
    pairs, pair_of_text = _own_pairs(features, images, texts)
    texts_at_least, images_at_least = (
        counts[pair_of_text] for counts in count_at_least(images, texts, pairs, device, tile)
    )
    wrong_captions = texts_at_least - _own_captions_at_least(features, pairs.similarity[pair_of_text])
    order, starts, counts = by_image(features.image_of_text, len(features.images))
    best = np.minimum.reduceat(wrong_captions[order], starts)
    precision = _average_precision(wrong_captions[order], starts, counts)
    return Ranks(best + 1, images_at_least, precision)  # the own image is always counted


def _own_pairs(features: FeatureSet, images: Distinct, texts: Distinct) -> tuple[Pairs, np.ndarray]:
    """The distinct pairs of an image and its own text, and `(T,)` which of them each text is in."""
    # Equal pairs have one similarity, to the bit.
    cells, pair_of_text = np.unique(
        images.place[features.image_of_text] * len(texts) + texts.place, return_inverse=True
    )
    row, column = np.divmod(cells, len(texts))
    similarity = np.empty(len(cells), dtype=np.float32)
    for start in range(0, len(cells), _OWN_BLOCK):
        part = slice(start, start + _OWN_BLOCK)
        similarity[part] = np.einsum("pd,pd->p", images.rows(row[part]), texts.rows(column[part]))
    return Pairs(row, column, similarity), pair_of_text


def _own_captions_at_least(features: FeatureSet, own: np.ndarray) -> np.ndarray:
    """`(T,)` captions of a text's image, itself included, that are at least as similar to it as the text."""
    order, starts, counts = by_image(features.image_of_text, len(features.images))
    at_least = np.zeros(len(own), dtype=np.int64)
    for slot in range(counts.max()):
        rival = np.full(len(counts), -np.inf, dtype=np.float32)
        rival[counts > slot] = own[order[starts[counts > slot] + slot]]
        at_least += rival[features.image_of_text] >= own
    return at_least


def _average_precision(wrong_before: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """`(N,)` AP@10 from the wrong captions before each right one (grouped by image)."""
    image = np.repeat(np.arange(len(counts)), counts)
    ascending = wrong_before[np.lexsort((wrong_before, image))]
    nth = (
        np.arange(len(image)) - np.repeat(starts, counts) + 1
    )  # 1 for the image's first right answer, 2 for its second
    rank = ascending + nth
    precision = np.where(rank <= AP_DEPTH, nth / rank, 0.0)
    return np.add.reduceat(precision, starts) / np.minimum(counts, AP_DEPTH)
