"""Draws of labelled pictures, class by class: folds, a share that is held out, and at most so many. Free of torch."""

from __future__ import annotations

import numpy as np

from core.errors import DataError


def stratified_parts(labels: np.ndarray, num_parts: int, seed: int) -> np.ndarray:
    """`(N,)` which part each picture is in: those of a class are dealt out in turn, one class after another."""
    parts = np.empty(len(labels), dtype=np.int64)
    parts[_drawn_by_class(labels, seed)] = np.arange(len(labels)) % num_parts
    return parts


def held_out(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """`(N,)` bool: a share of the pictures of every class, at least one where there are two, and never all."""
    counts = np.bincount(labels)
    wanted = np.where(counts < 2, 0, np.maximum(1, np.round(share * counts)))
    is_held_out: np.ndarray = _place_in_class(labels, seed) < wanted[labels]
    return is_held_out


def at_most(rows: np.ndarray, labels: np.ndarray, most: int, what: str) -> np.ndarray:
    """`most` of the rows, drawn once and for all: of every class like shares, but two where it has two.

    Args:
        rows: `(n,)` places in `labels` `(N,)`.

    Raises:
        DataError: two of each class are more than that; the sentence begins with `what`.
    """
    if len(rows) <= most:
        return rows
    labels = labels[rows]
    counts = np.bincount(labels)
    num_classes = int((counts > 0).sum())
    if np.minimum(counts, 2).sum() > most:
        raise DataError(
            f"{what}: most_images is {most:,}, and of {num_classes:,} classes 2 pictures each are needed to "
            f"learn from. Set most_images={2 * num_classes} or more."
        )
    place = _place_in_class(labels, seed=8)
    share = np.where(place < 2, 0, (place + 0.5) / counts[labels])
    any_order = np.random.default_rng((8, most)).permutation(len(rows))  # of equal shares
    return np.sort(rows[np.lexsort((any_order, share))[:most]])


def _place_in_class(labels: np.ndarray, seed: int) -> np.ndarray:
    """`(N,)` how many of its class stand before each, in random order."""
    order, counts = _drawn_by_class(labels, seed), np.bincount(labels)
    place = np.empty(len(labels), dtype=np.int64)
    place[order] = np.arange(len(labels)) - (np.cumsum(counts) - counts)[labels[order]]
    return place


def _drawn_by_class(labels: np.ndarray, seed: int) -> np.ndarray:
    """Rows in random order, one class after another."""
    order = np.random.default_rng(seed).permutation(len(labels))
    return order[np.argsort(labels[order], kind="stable")]
