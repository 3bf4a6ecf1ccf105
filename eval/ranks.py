"""Ranks of the right answers of a feature set, ties against the model; counted on a device by all ranks together.

Legend: `N` images, `T` texts, `P` distinct pairs of an image and a text that is right for it, `E` answers: a query and
one of these pairs, `Q` queries.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from eval.counting import Distinct, Pairs, Tile, count_at_least
from eval.metrics import FeatureSet, Ranks, RightAnswers
from trainer.telemetry.names import AP_DEPTH

_CPU = torch.device("cpu")
_BLOCK = 4096  # pairs of an image and a text that are multiplied at a time


def retrieval_ranks(features: FeatureSet, device: torch.device = _CPU, tile: Tile | None = None) -> Ranks:
    """Ranks in both directions, from one float32 product; the same digits for any number of ranks (collective).

    Args:
        features: the same on every rank.
        device: where this rank's share is multiplied and compared.
        tile: None: as suits the device.
    """
    images, texts = Distinct(features.images), Distinct(features.texts)
    of_images, of_texts, query_of_text = _answers(features.right, images, texts)
    # Equal pairs have one similarity, to the bit.
    cells = np.unique(of_images.cell)
    pairs = _pairs(cells, images, texts)
    texts_at_least, images_at_least = count_at_least(images, texts, pairs, device, tile)
    image_to_text, of_image = _ranked(of_images, cells, pairs, texts_at_least)
    text_to_image, of_text = _ranked(of_texts, cells, pairs, images_at_least)
    return Ranks(image_to_text, text_to_image[query_of_text], of_image, of_text[query_of_text])


@dataclass(frozen=True, eq=False)
class _Answers:
    """Every right answer of every query of one direction; `(E,)` each.

    Attributes:
        query: from 0; every one has an answer.
        cell: the distinct pair that query and answer are, image times number of distinct texts plus text.
        copies: how many right answers it stands for.
    """

    query: np.ndarray
    cell: np.ndarray
    copies: np.ndarray


def _answers(right: RightAnswers, images: Distinct, texts: Distinct) -> tuple[_Answers, _Answers, np.ndarray]:
    """Of the images and of the texts; and `(T,)` which query each text is: texts of equal bits that say the same."""
    said, query_of_text, copies = _distinct_pairs(right.says, texts.place)
    held, _, copies_held = _distinct_pairs(right.holds, images.place[right.images])
    image, answer = _joined(right.holds, said[0])
    of_images = _Answers(
        right.images[image], images.place[right.images[image]] * len(texts) + said[1][answer], copies[answer]
    )
    text, answer = _joined(said[0], held[0])
    of_texts = _Answers(text, held[1][answer] * len(texts) + said[1][text], copies_held[answer])
    return of_images, of_texts, query_of_text


def _distinct_pairs(numbers: np.ndarray, places: np.ndarray) -> tuple[tuple[np.ndarray, ...], np.ndarray, np.ndarray]:
    """The distinct pairs of a number and a place, ordered; which of them each is; and how often each occurs."""
    base = int(places.max()) + 1
    found, which, counts = np.unique(numbers * base + places, return_inverse=True, return_counts=True)
    return np.divmod(found, base), which, counts


def _joined(wanted: np.ndarray, ordered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places in `wanted` and in `ordered` of every two that are equal; grouped by the former, in order."""
    first = np.searchsorted(ordered, wanted, "left")
    counts = np.searchsorted(ordered, wanted, "right") - first
    nth = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(np.arange(len(wanted)), counts), np.repeat(first, counts) + nth


def _pairs(cells: np.ndarray, images: Distinct, texts: Distinct) -> Pairs:
    row, column = np.divmod(cells, len(texts))
    similarity = np.empty(len(cells), dtype=np.float32)
    for start in range(0, len(cells), _BLOCK):
        part = slice(start, start + _BLOCK)
        similarity[part] = np.einsum("pd,pd->p", images.rows(row[part]), texts.rows(column[part]))
    return Pairs(row, column, similarity)


def _ranked(answers: _Answers, cells: np.ndarray, pairs: Pairs, at_least: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`(Q,)` each: rank of a query's best right answer, and its AP@10.

    Args:
        at_least: `(P,)` answers, right and wrong, at least as similar to the query as the pair is.
    """
    pair = np.searchsorted(cells, answers.cell)
    order = np.lexsort((-pairs.similarity[pair], answers.query))  # the best answer of each query first
    query, pair, copies = answers.query[order], pair[order], answers.copies[order]
    starts = np.flatnonzero(np.diff(query, prepend=-1))
    right_before = np.cumsum(copies) - copies
    right_before -= np.repeat(right_before[starts], np.diff(starts, append=len(query)))
    similarity = pairs.similarity[pair]
    ties = np.flatnonzero((np.diff(query, prepend=-1) != 0) | (np.diff(similarity, prepend=np.nan) != 0))
    last = np.repeat(np.append(ties[1:], len(query)) - 1, np.diff(ties, append=len(query)))  # that ties with each
    wrong = at_least[pair] - (right_before + copies)[last]
    total = np.add.reduceat(copies, starts)
    return wrong[starts] + 1, _average_precision(query, wrong, copies, total)


def _average_precision(query: np.ndarray, wrong: np.ndarray, copies: np.ndarray, total: np.ndarray) -> np.ndarray:
    """`(Q,)` AP@10 from the wrong answers before each right one, which are ordered; `total` right ones of each."""
    counted = np.minimum(copies, AP_DEPTH)  # those behind the tenth count for nothing
    query, wrong = np.repeat(query, counted), np.repeat(wrong, counted)
    starts = np.flatnonzero(np.diff(query, prepend=-1))
    nth = np.arange(len(query)) - np.repeat(starts, np.diff(starts, append=len(query))) + 1  # right answer: 1, 2, ...
    rank = wrong + nth
    precision = np.where(rank <= AP_DEPTH, nth / rank, 0.0)
    return np.add.reduceat(precision, starts) / np.minimum(total, AP_DEPTH)
