"""k nearest neighbours: the classes of frozen features, without training anything (Wu et al. 2018; as in DINO)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from core.errors import DataError
from eval.evaluations.evaluation import Evaluation, Measured, Need, Subject
from eval.spread import spread
from trainer.telemetry import names

NUM_NEIGHBOURS = 20
TEMPERATURE = 0.07
MOST_IN_GALLERY = 10_000  # pictures of a training set; more cost time at every validation and move the figure little
_SAME = 1e-6  # cosines closer than this are equal: a matrix product rounds equal rows apart
_SAME_VOTES = 1e-5  # likewise votes, relative
_BLOCK_BYTES = 32 * 2**20


@dataclass(frozen=True)
class KNN(Evaluation):
    """The class of a picture by its 20 nearest neighbours (or all of a smaller gallery) and by the nearest alone."""

    needs: ClassVar[tuple[Need, ...]] = ("labels",)

    def figures(self) -> tuple[str, ...]:
        """Both accuracies."""
        return (names.KNN, names.KNN1)

    def measure(self, subject: Subject) -> Measured:
        """Of the pictures that have a class."""
        is_right = right_by_neighbours(subject)
        return Measured({figure: float(np.mean(right)) for figure, right in is_right.items()}, of_each=is_right)


def right_by_neighbours(subject: Subject) -> dict[str, np.ndarray]:
    """`(n,)` bool for each figure: whether each picture that has a class is given it by its neighbours (collective).

    Raises:
        DataError: no picture has a class, or there is no other to compare it with.
    """
    assert subject.labels is not None
    has_class = subject.labels >= 0
    images, labels = subject.images[has_class], subject.labels[has_class]
    own_gallery = subject.gallery is None
    gallery = images if subject.gallery is None else subject.gallery.images
    gallery_labels = labels if subject.gallery is None else subject.gallery.labels
    if len(gallery) - own_gallery < 1 or not len(images):
        raise DataError(
            f"k-NN: {len(images)} pictures with a class and {len(gallery) - own_gallery} others to compare them with: "
            "at least 1 of each is needed. Label more samples (`shardclip column labels`)."
        )
    return {
        figure: knn_is_right(images, labels, gallery, gallery_labels, k=k, leave_one_out=own_gallery)
        for figure, k in ((names.KNN, NUM_NEIGHBOURS), (names.KNN1, 1))
    }


def knn_is_right(
    queries: np.ndarray,
    labels: np.ndarray,
    gallery: np.ndarray,
    gallery_labels: np.ndarray,
    *,
    k: int = NUM_NEIGHBOURS,
    temperature: float = TEMPERATURE,
    leave_one_out: bool = False,
) -> np.ndarray:
    """`(Q,)` bool: whether a query's own class has more votes of its k nearest than every other class (collective).

    A neighbour votes with `exp(cosine / temperature)`. Ties count against the model: of neighbours that are equally
    near, those take part that help the strongest other class most; and equal votes are not right.

    Args:
        queries, gallery: `(Q, D)` and `(G, D)`, unit length.
        labels, gallery_labels: `(Q,)` and `(G,)`, from 0.
        k: at most what there is: G, or G - 1.
        leave_one_out: the gallery is the queries, and none finds itself.
    """
    k = min(k, len(gallery) - leave_one_out)
    num_classes = int(max(labels.max(), gallery_labels.max())) + 1
    rows = max(1, _BLOCK_BYTES // (4 * len(gallery) + 16 * num_classes))

    def votes(part: slice) -> np.ndarray:
        similarity = queries[part].astype(np.float32) @ gallery.astype(np.float32).T
        if leave_one_out:
            np.fill_diagonal(similarity[:, part.start :], -np.inf)
        return _vote(similarity, labels[part], gallery_labels, k, temperature, num_classes)

    return spread(len(queries), rows, votes)


def gallery_samples(labels: np.ndarray, most: int = MOST_IN_GALLERY, seed: int = 0) -> np.ndarray:
    """Which samples `(G,)` of a labelled set are its gallery, in order: all with a class, or `most` drawn at random."""
    labelled = np.flatnonzero(labels >= 0)
    if len(labelled) <= most:
        return labelled
    return np.sort(np.random.default_rng((seed, most)).permutation(labelled)[:most])


def _vote(
    similarity: np.ndarray, labels: np.ndarray, gallery_labels: np.ndarray, k: int, temperature: float, num_classes: int
) -> np.ndarray:
    """`(q,)` bool, of similarities `(q, G)`."""
    last = np.partition(similarity, -k, axis=1)[:, -k]  # the k-th nearest
    query, neighbour = np.nonzero(similarity >= (last - _SAME)[:, None])
    near = similarity[query, neighbour].astype(np.float64)
    is_tied = near <= last[query] + _SAME  # perhaps more than there is room for
    cell = query * num_classes + gallery_labels[neighbour]
    cells, shape = len(labels) * num_classes, (len(labels), num_classes)
    weights = np.exp(near[~is_tied] / temperature)
    votes = np.bincount(cell[~is_tied], weights, cells).reshape(shape)
    tied = np.bincount(cell[is_tied], minlength=cells).reshape(shape)
    room = k - np.bincount(query[~is_tied], minlength=len(labels))
    weight = np.exp(last.astype(np.float64) / temperature)
    own = np.arange(len(labels)), labels
    rivals = votes + np.minimum(tied, room[:, None]) * weight[:, None]
    rivals[own] = 0
    left_for_own = np.maximum(0, room - (tied.sum(axis=1) - tied[own]))
    own_votes = votes[own] + left_for_own * weight
    is_right: np.ndarray = own_votes > rivals.max(axis=1) * (1 + _SAME_VOTES)
    return is_right
