"""k nearest neighbours: the classes of frozen features, without training anything (Wu et al. 2018; as in DINO)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from core.errors import DataError
from eval.evaluations.evaluation import Evaluation, Known, Measured, Need, Subject
from eval.metrics import share_interval
from eval.spread import spread
from trainer.telemetry import names

if TYPE_CHECKING:
    from eval.nearest import Tiles

NUM_NEIGHBOURS = 20
TEMPERATURE = 0.07
MOST_IN_GALLERY = 10_000  # pictures of a training set; more cost time at every validation and move the figure little
SAME = 1e-6  # cosines closer than this are equal: a matrix product rounds equal rows apart
_SAME_VOTES = 1e-5  # likewise votes, relative
_SPARE = 32  # further neighbours that are looked at, since they may tie with the last; where more do, they are counted
_BLOCK_BYTES = 32 * 2**20  # of the votes of a block of queries for every class


@dataclass(frozen=True)
class KNN(Evaluation):
    """The class of a picture by its 20 nearest neighbours (or all of a smaller gallery) and by the nearest alone."""

    needs: ClassVar[tuple[Need, ...]] = ("labels",)

    def figures(self) -> tuple[str, ...]:
        """Both accuracies."""
        return (names.KNN, names.KNN1)

    def expect(self, known: Known) -> None:
        """Raise where there is nothing to compare."""
        expect_others(known, "k-NN")

    def measure(self, subject: Subject) -> Measured:
        """Of the pictures that have a class."""
        is_right = right_by_neighbours(subject)
        figures = {figure: float(np.mean(right)) for figure, right in is_right.items()}
        intervals = {figure: share_interval(right) for figure, right in is_right.items()}
        return Measured(figures, intervals, of_each=is_right)


def right_by_neighbours(subject: Subject) -> dict[str, np.ndarray]:
    """`(n,)` bool for each figure: whether each picture that has a class is given it by its neighbours (collective).

    Raises:
        DataError: no picture has a class, or there is no other to compare it with.
    """
    found, ks = compared(subject, "k-NN"), (NUM_NEIGHBOURS, 1)
    by_k = knn_are_right(*found.sides, ks=ks, leave_one_out=found.leave_one_out, device=subject.device)
    return dict(zip((names.KNN, names.KNN1), by_k.T, strict=True))


@dataclass(frozen=True, eq=False)
class Compared:
    """Pictures with a class, and those among which they look for their neighbours.

    Attributes:
        sides: images `(Q, D)` and labels `(Q,)` of the one, then of the other.
        samples, gallery_samples: which sample each is.
        leave_one_out: both are the same, and none finds itself.
    """

    sides: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
    samples: np.ndarray
    gallery_samples: np.ndarray
    leave_one_out: bool


def expect_others(known: Known, what: str) -> None:
    """Raise where no picture has a class, or there is no other to compare it with.

    Raises:
        DataError: so it is; the sentence begins with `what`.
    """
    assert known.labels is not None
    num_images = int((known.labels >= 0).sum())
    num_others = num_images - 1 if known.gallery_labels is None else len(known.gallery_labels)
    if num_others < 1 or not num_images:
        raise DataError(
            f"{what}: {num_images} pictures with a class and {max(0, num_others)} others to compare them with: "
            "at least 1 of each is needed. Label more samples (`shardclip column labels`)."
        )


def compared(subject: Subject, what: str) -> Compared:
    """What of a subject has a class, and its gallery, which may be itself.

    Raises:
        DataError: there is nothing to compare; the sentence begins with `what`.
    """
    expect_others(subject.known, what)
    assert subject.labels is not None
    has_class = subject.labels >= 0
    images, labels = subject.images[has_class], subject.labels[has_class]
    samples = (subject.samples if len(subject.samples) else np.arange(len(subject.images)))[has_class]
    own_gallery = subject.gallery is None
    gallery, gallery_labels, gallery_samples = (
        (images, labels, samples)
        if subject.gallery is None
        else (subject.gallery.images, subject.gallery.labels, subject.gallery.samples)
    )
    return Compared((images, labels, gallery, gallery_labels), samples, gallery_samples, own_gallery)


def pictures_are_right(subject: Subject, images: np.ndarray, k: int = NUM_NEIGHBOURS) -> np.ndarray:
    """`(L,)` bool of the subject's pictures that have a class: whether its nearest neighbours say it (collective).

    Args:
        images: `(N, D)` features of the pictures, changed in some way; those of the gallery stay as they are.

    Raises:
        DataError: there is nothing to compare.
    """
    found = compared(subject, "k-NN")
    _, labels, gallery, gallery_labels = found.sides
    assert subject.labels is not None
    sides = images[subject.labels >= 0], labels, gallery, gallery_labels
    return knn_is_right(*sides, k=k, leave_one_out=found.leave_one_out, device=subject.device)


def knn_are_right(
    queries: np.ndarray,
    labels: np.ndarray,
    gallery: np.ndarray,
    gallery_labels: np.ndarray,
    *,
    ks: Sequence[int],
    temperature: float = TEMPERATURE,
    leave_one_out: bool = False,
    device: str = "cpu",
) -> np.ndarray:
    """`(Q, len(ks))` bool: whether the k nearest give a query's own class more votes than every other (collective).

    A neighbour votes with `exp(cosine / temperature)`. Ties count against the model: of neighbours that are equally
    near, those take part that help the strongest other class most; and equal votes are not right. Memory above the
    features is some tens of megabytes, however many pictures there are.

    Args:
        queries, gallery: `(Q, D)` and `(G, D)`, unit length.
        labels, gallery_labels: `(Q,)` and `(G,)`, from 0.
        ks: each at most what there is: G, or G - 1.
        leave_one_out: the gallery is of the queries' pictures, in their order, and none finds itself.
    """
    from eval.nearest import MOST_QUERIES, Tiles  # with torch, which recipes do without

    tiles = Tiles(queries, gallery, leave_one_out=leave_one_out, device=device)
    num_classes = int(max(labels.max(), gallery_labels.max())) + 1
    rows = min(MOST_QUERIES, max(1, _BLOCK_BYTES // (48 * num_classes)))
    kept = min(max(ks) + _SPARE, tiles.num_others)

    def votes(part: slice) -> np.ndarray:
        found, cosines = tiles.nearest(part, kept)
        nearest = _Nearest(tiles, part, gallery_labels[found], cosines, gallery_labels, num_classes)
        right = [_vote(nearest.of(min(k, kept)), labels[part], min(k, kept), temperature) for k in ks]
        return np.stack(right, axis=1)

    return spread(len(queries), rows, votes)


def knn_is_right(*sides: np.ndarray, k: int = NUM_NEIGHBOURS, **options: Any) -> np.ndarray:
    """`(Q,)` bool: `knn_are_right` of one k."""
    found: np.ndarray = knn_are_right(*sides, ks=(k,), **options)[:, 0]
    return found


def gallery_samples(labels: np.ndarray, most: int = MOST_IN_GALLERY, seed: int = 0) -> np.ndarray:
    """Which samples `(G,)` of a labelled set are its gallery, in order: all with a class, or `most` drawn at random."""
    labelled = np.flatnonzero(labels >= 0)
    if len(labelled) <= most:
        return labelled
    return np.sort(np.random.default_rng((seed, most)).permutation(labelled)[:most])


@dataclass(frozen=True, eq=False)
class _Near:
    """The nearest of `q` queries, by class.

    Attributes:
        query, label, cosine: of every neighbour that is certainly among the k nearest.
        tied: `(q, K)` how many of each class are as near as the last of the k, perhaps more than there is room for.
        last: `(q,)` cosine of that one.
    """

    query: np.ndarray
    label: np.ndarray
    cosine: np.ndarray
    tied: np.ndarray
    last: np.ndarray


@dataclass(frozen=True, eq=False)
class _Nearest:
    """The labels and cosines `(q, kept)` of the nearest of some queries, best first."""

    tiles: Tiles
    part: slice
    labels: np.ndarray
    cosines: np.ndarray
    gallery_labels: np.ndarray
    num_classes: int

    def of(self, k: int) -> _Near:
        """Those that take part, or may, where k do."""
        last = self.cosines[:, k - 1]
        is_near = self.cosines >= (last - SAME)[:, None]
        query, place = np.nonzero(is_near)
        label, near = self.labels[query, place], self.cosines[query, place].astype(np.float64)
        is_tied = near <= last[query] + SAME
        cells = query[is_tied] * self.num_classes + label[is_tied]
        tied = np.bincount(cells, minlength=len(last) * self.num_classes).reshape(len(last), self.num_classes)
        beyond = np.flatnonzero(is_near[:, -1])  # more may tie than were kept
        if len(beyond) and self.cosines.shape[1] < self.tiles.num_others:
            counted = (self.tiles, self.part, beyond, last[beyond], self.gallery_labels, self.num_classes)
            tied[beyond] = _count_tied(*counted)
        return _Near(query[~is_tied], label[~is_tied], near[~is_tied], tied, last)


def _count_tied(
    tiles: Tiles, part: slice, chosen: np.ndarray, last: np.ndarray, gallery_labels: np.ndarray, num_classes: int
) -> np.ndarray:
    """`(c, K)` pictures of each class as near to the chosen queries as their last, however many there are."""
    counts = np.zeros(len(chosen) * num_classes, dtype=np.int64)
    for columns, similarity in tiles.of(part):
        own = similarity[chosen].cpu().numpy()
        query, place = np.nonzero((own >= (last - SAME)[:, None]) & (own <= (last + SAME)[:, None]))
        counts += np.bincount(query * num_classes + gallery_labels[columns][place], minlength=len(counts))
    return counts.reshape(len(chosen), num_classes)


def _vote(near: _Near, labels: np.ndarray, k: int, temperature: float) -> np.ndarray:
    """`(q,)` bool."""
    shape = near.tied.shape
    weights = np.exp(near.cosine / temperature)
    votes = np.bincount(near.query * shape[1] + near.label, weights, shape[0] * shape[1]).reshape(shape)
    room = k - np.bincount(near.query, minlength=shape[0])
    weight = np.exp(near.last.astype(np.float64) / temperature)
    own = np.arange(len(labels)), labels
    rivals = votes + np.minimum(near.tied, room[:, None]) * weight[:, None]
    rivals[own] = 0
    left_for_own = np.maximum(0, room - (near.tied.sum(axis=1) - near.tied[own]))
    own_votes = votes[own] + left_for_own * weight
    is_right: np.ndarray = own_votes > rivals.max(axis=1) * (1 + _SAME_VOTES)
    return is_right
