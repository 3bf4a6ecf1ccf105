"""k-NN accuracy against nested loops and against scikit-learn; ties count against the model."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from core.errors import DataError
from eval.evaluations import chosen, figures_of, measure_all
from eval.evaluations.evaluation import Gallery, Subject
from eval.evaluations.knn import KNN, gallery_samples, knn_is_right

SAME = 1e-6


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def random_rows(count, width, seed, coarse):
    rows = np.random.default_rng(seed).normal(size=(count, width))
    if coarse:  # many equal rows and equal cosines
        rows = np.round(rows)
        rows[~rows.any(axis=1), 0] = 1
    return unit(rows).astype(np.float32)


def is_right_by_loops(query, label, gallery, gallery_labels, k, temperature):
    """Every choice of k neighbours that is as near as any: the class must win by votes in each of them."""
    cosines = [float(np.dot(query.astype(np.float64), row.astype(np.float64))) for row in gallery]
    order = sorted(range(len(cosines)), key=lambda i: -cosines[i])
    last = cosines[order[k - 1]]
    sure = [i for i in order if cosines[i] > last + SAME]
    tied = [i for i in order if abs(cosines[i] - last) <= SAME]
    for taken in combinations(tied, k - len(sure)):
        votes = {}
        for i in [*sure, *taken]:
            votes[gallery_labels[i]] = votes.get(gallery_labels[i], 0.0) + math.exp(cosines[i] / temperature)
        own = votes.pop(label, 0.0)
        if own <= max(votes.values(), default=0.0) * (1 + 1e-5):
            return False
    return True


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 6), st.integers(2, 11), st.integers(1, 5), st.integers(1, 4), st.integers(0, 999), st.booleans())
def test_votes_are_those_of_nested_loops(num_queries, num_gallery, width, k, seed, coarse):
    queries = random_rows(num_queries, width, seed, coarse)
    gallery = random_rows(num_gallery, width, seed + 1000, coarse)
    labels = np.random.default_rng(seed).integers(0, 3, num_queries)
    gallery_labels = np.random.default_rng(seed + 1).integers(0, 3, num_gallery)
    k = min(k, num_gallery)
    for temperature in (0.07, 1.0):
        found = knn_is_right(queries, labels, gallery, gallery_labels, k=k, temperature=temperature)
        expected = [
            is_right_by_loops(q, label, gallery, gallery_labels, k, temperature)
            for q, label in zip(queries, labels, strict=True)
        ]
        assert found.tolist() == expected


@settings(deadline=None, max_examples=40)
@given(st.integers(3, 9), st.integers(1, 4), st.integers(1, 12), st.integers(0, 999), st.booleans())
def test_leaving_one_out_is_a_gallery_of_all_others(count, width, k, seed, coarse):
    rows, labels = random_rows(count, width, seed, coarse), np.random.default_rng(seed).integers(0, 3, count)
    found = knn_is_right(rows, labels, rows, labels, k=k, leave_one_out=True)
    for i in range(count):
        others = np.arange(count) != i
        alone = knn_is_right(rows[i : i + 1], labels[i : i + 1], rows[others], labels[others], k=k)
        assert found[i] == alone[0]


@pytest.mark.parametrize("k", [1, 5, 20])
def test_accuracy_is_that_of_scikit_learn(k):
    neighbors = pytest.importorskip("sklearn.neighbors")
    gallery, queries = random_rows(300, 6, 0, False), random_rows(80, 6, 1, False)
    gallery_labels, labels = gallery[:, :4].argmax(axis=1), queries[:, :4].argmax(axis=1)
    peer = neighbors.KNeighborsClassifier(k, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07))
    expected = peer.fit(gallery, gallery_labels).predict(queries) == labels
    assert 0.3 < expected.mean() < 1
    np.testing.assert_array_equal(knn_is_right(queries, labels, gallery, gallery_labels, k=k), expected)


def test_accuracy_on_photographs_is_that_of_scikit_learn(shared_data):
    """Features: the photographs themselves, 12 x 12 pixels."""
    neighbors = pytest.importorskip("sklearn.neighbors")
    (gallery, gallery_labels), (queries, labels) = (
        small_pictures(shared_data / "caltech15" / split) for split in ("train", "val")
    )
    for k in (1, 20):
        peer = neighbors.KNeighborsClassifier(k, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07))
        expected = peer.fit(gallery, gallery_labels).predict(queries) == labels
        assert 0.15 < expected.mean() < 0.9
        np.testing.assert_array_equal(knn_is_right(queries, labels, gallery, gallery_labels, k=k), expected)


def small_pictures(folder):
    """`(N, 432)` centred pixels of unit length, and `(N,)` the classes of an image folder."""
    rows, labels = [], []
    for label, paths in enumerate(sorted(path for path in folder.iterdir() if path.is_dir())):
        for path in sorted(paths.iterdir()):
            with Image.open(path) as picture:
                pixels = np.asarray(picture.convert("RGB").resize((12, 12)), dtype=np.float64)
            rows.append((pixels - pixels.mean()).ravel())
            labels.append(label)
    return unit(np.stack(rows)).astype(np.float32), np.array(labels)


def test_blocks_change_nothing(monkeypatch):
    rows, labels = random_rows(50, 4, 3, True), np.random.default_rng(0).integers(0, 4, 50)
    whole = knn_is_right(rows, labels, rows, labels, k=7, leave_one_out=True)
    monkeypatch.setattr("eval.evaluations.knn._BLOCK_BYTES", 2000)
    np.testing.assert_array_equal(knn_is_right(rows, labels, rows, labels, k=7, leave_one_out=True), whole)


def test_a_collapsed_encoder_is_never_right():
    row = unit(np.random.default_rng(0).normal(size=(1, 64)))
    rows = (np.repeat(row, 40, axis=0) * (1 + 1e-7 * np.arange(40)[:, None])).astype(np.float32)  # rounded apart
    labels = np.arange(40) % 2
    assert not knn_is_right(rows, labels, rows, labels, leave_one_out=True).any()


@pytest.mark.parametrize("tile", [4096, 33])
@pytest.mark.parametrize("step", [1, -1])  # whichever of the equal ones are found first
def test_more_ties_than_are_kept_are_counted(tile, step, monkeypatch):
    monkeypatch.setattr("eval.nearest.CPU_TILE", tile)
    row = random_rows(1, 8, 0, False)
    gallery = np.concatenate([np.repeat(row, 200, axis=0), random_rows(50, 8, 1, False)])[::step]
    gallery_labels = np.repeat([0, 1, 0], [170, 30, 50])[::step]
    queries, labels = np.repeat(row, 2, axis=0), np.array([0, 1])
    for k in (1, 20, 40, 60, 61, 100, 201):
        found = knn_is_right(queries, labels, gallery, gallery_labels, k=k)
        # Class 1 takes 30 of k places against class 0, which takes all 170 that it can against class 1.
        assert found.tolist() == [k - 30 > 30, False]


def test_both_accuracies_have_intervals():
    images, labels = random_rows(200, 6, 0, False), np.random.default_rng(0).integers(0, 3, 200)
    measured = KNN().measure(Subject(images, labels))
    for k, name in ((20, "knn/accuracy"), (1, "knn1/accuracy")):
        is_right = knn_is_right(images, labels, images, labels, k=k, leave_one_out=True)
        interval = measured.intervals[name]
        assert measured.figures[name] == interval.estimate == is_right.mean()
        error = np.sqrt(is_right.mean() * (1 - is_right.mean()) / 200)
        assert interval.high - interval.low == pytest.approx(2 * 1.96 * error, rel=0.15)


def figures(subject):
    return figures_of(measure_all(chosen(()), subject))


def test_figures_leave_out_what_has_no_class_and_name_a_gallery_that_is_too_small():
    images, labels = np.eye(4, dtype=np.float32)[[0, 0, 1, 1, 2]], np.array([0, 0, 1, 1, -1])
    assert figures(Subject(images, labels)) == {
        "knn/accuracy": 1.0,
        "knn1/accuracy": 1.0,
    }  # the near one outvotes two
    gallery = Gallery(images[[0, 2]], np.array([0, 0]), np.array([7, 9]))
    assert figures(Subject(images, labels, gallery=gallery))["knn1/accuracy"] == 0.5
    assert figures(Subject(images)) == {}
    with pytest.raises(DataError, match=r"1 pictures with a class and 0 others"):
        figures(Subject(images, np.array([0, -1, -1, -1, -1])))
    with pytest.raises(DataError, match=r"k-NN: 0 pictures with a class and 0 others"):
        figures(Subject(images, np.full(5, -1)))


def test_a_large_training_set_gives_the_same_ten_thousand_every_time():
    labels = np.where(np.arange(30_000) % 3 == 0, -1, 1)
    drawn = gallery_samples(labels)
    assert len(np.unique(drawn)) == 10_000 and (labels[drawn] >= 0).all() and (np.diff(drawn) > 0).all()
    assert 14_000 < drawn.mean() < 16_000  # from all over the set
    np.testing.assert_array_equal(drawn, gallery_samples(labels))
    assert gallery_samples(labels[:90]).tolist() == np.flatnonzero(labels[:90] >= 0).tolist()
