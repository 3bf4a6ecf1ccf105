"""Same-class retrieval against a double loop, torchmetrics and k-NN; ties against the model; any number of ranks."""

import gloo
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.config import Choice
from core.errors import ConfigError, DataError
from eval.evaluations import chosen
from eval.evaluations.evaluation import Gallery, Subject
from eval.evaluations.knn import knn_is_right
from eval.evaluations.same_class import FILE, SameClass, average_precision, nearest_of_class
from eval.spread import spread


def rows_of(count, width, seed, coarse=False):
    rows = np.random.default_rng(seed).normal(size=(count, width))
    if coarse:  # many equal rows and equal cosines
        rows = np.round(rows)
        rows[~rows.any(axis=1), 0] = 1
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def labels_of(count, num_classes, seed):
    return np.random.default_rng(seed).integers(0, num_classes, count)


def by_loops(queries, labels, gallery, gallery_labels, own):
    """precision@1, 5, 10 and AP@10 of each query: a wrong answer that is as near stands before the right one."""
    found = []
    for i, (query, label) in enumerate(zip(queries, labels, strict=True)):
        answers = []
        for j, (row, other) in enumerate(zip(gallery, gallery_labels, strict=True)):
            if not (own and i == j):
                cosine = float(np.dot(query.astype(np.float64), row.astype(np.float64)))
                answers.append((cosine + (1e-6 if other != label else 0), other == label))
        is_right = [right for _, right in sorted(answers, key=lambda answer: (-answer[0], answer[1]))]
        precision = [sum(is_right[:k]) / len(is_right[:k]) for k in (1, 5, 10)]
        total = sum(sum(is_right[: i + 1]) / (i + 1) for i in range(len(is_right[:10])) if is_right[i])
        found.append([*precision, total / max(1, min(10, sum(is_right)))])
    return np.mean(found, axis=0)


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 20), st.integers(1, 25), st.integers(1, 5), st.integers(0, 999), st.booleans(), st.booleans())
def test_figures_are_those_of_a_double_loop(num_queries, num_gallery, width, seed, coarse, own):
    images, labels = rows_of(num_queries, width, seed, coarse), labels_of(num_queries, 3, seed)
    others, other_labels = rows_of(num_gallery, width, seed + 1, coarse), labels_of(num_gallery, 3, seed + 1)
    gallery = None if own else Gallery(others, other_labels, np.arange(num_gallery))
    figures = SameClass().measure(Subject(images, labels, gallery=gallery)).figures
    expected = by_loops(images, labels, *((images, labels) if own else (others, other_labels)), own)
    np.testing.assert_allclose([*figures.values()], expected, rtol=1e-12)


def test_precision_and_map_are_those_of_torchmetrics():
    retrieval = pytest.importorskip("torchmetrics.retrieval", reason="torchmetrics is not installed (make peers)")
    import torch

    queries, gallery = rows_of(40, 8, 0), rows_of(60, 8, 1)
    labels, gallery_labels = labels_of(40, 4, 2), labels_of(60, 4, 3)
    cosines = 2 + torch.from_numpy(queries @ gallery.T)  # torchmetrics takes what scores 0 or less for irrelevant
    target = torch.from_numpy(labels[:, None] == gallery_labels)
    given = (cosines.flatten(), target.flatten(), torch.arange(40).repeat_interleave(60))
    figures = SameClass().measure(Subject(queries, labels, gallery=Gallery(gallery, gallery_labels, np.arange(60))))
    for k in (1, 5, 10):
        assert figures.figures[f"same_class/precision@{k}"] == pytest.approx(
            float(retrieval.RetrievalPrecision(top_k=k)(*given)), abs=1e-6
        )
    # Over the whole gallery both divide by all right answers; at 10 torchmetrics divides by those found.
    nearest = nearest_of_class(queries, labels, gallery, gallery_labels, 60)
    is_right, num_right = gallery_labels[nearest["row"]] == labels[:, None], target.sum(dim=1).numpy()
    whole = average_precision(is_right, num_right).mean()
    assert whole == pytest.approx(float(retrieval.RetrievalMAP()(*given)), abs=1e-6)
    found = is_right[:, :10].sum(axis=1)
    first = average_precision(is_right[:, :10], num_right) * np.minimum(num_right, 10) / np.maximum(found, 1)
    assert first.mean() == pytest.approx(float(retrieval.RetrievalMAP(top_k=10)(*given)), abs=1e-6)


@pytest.mark.parametrize("coarse", [False, True])
def test_the_nearest_is_right_where_knn_of_one_says_so(coarse):
    images, labels = rows_of(200, 4, 5, coarse), labels_of(200, 3, 5)
    nearest = nearest_of_class(images, labels, images, labels, 1, leave_one_out=True)
    expected = knn_is_right(images, labels, images, labels, k=1, leave_one_out=True)
    np.testing.assert_array_equal(labels[nearest["row"][:, 0]] == labels, expected)


def test_a_collapsed_encoder_finds_nothing():
    images = np.repeat(rows_of(1, 64, 0), 60, axis=0) * (1 + 1e-8 * np.arange(60)[:, None])  # rounded apart
    figures = SameClass().measure(Subject(images.astype(np.float32), np.arange(60) % 2)).figures
    assert set(figures.values()) == {0.0}


def test_tiles_and_blocks_change_nothing(monkeypatch):
    images, labels = rows_of(90, 5, 3, True), labels_of(90, 4, 3)
    whole = SameClass().measure(Subject(images, labels))
    monkeypatch.setattr("eval.nearest.CPU_TILE", 7)
    monkeypatch.setattr("eval.nearest.MOST_QUERIES", 11)
    assert SameClass().measure(Subject(images, labels)).figures == whole.figures


def test_lists_name_samples_and_say_what_is_right():
    images = np.eye(4, dtype=np.float32)[[0, 0, 1, 1, 2]]
    subject = Subject(images, np.array([0, 0, 1, 1, -1]), samples=np.array([10, 11, 12, 13, 14]), classes=("a", "b"))
    measured = SameClass(num_lists=3, list_length=2).measure(subject)
    queries = measured.files[FILE]["queries"]
    assert len(queries) == 3 and sorted(q["sample"] for q in queries) == [q["sample"] for q in queries]
    for query in queries:
        own = {10: 11, 11: 10, 12: 13, 13: 12}[query["sample"]]
        name = "a" if query["sample"] < 12 else "b"
        assert query["class"] == name and len(query["answers"]) == 2
        assert query["answers"][0] == {"sample": own, "class": name, "score": 1.0, "is_right": True}
        assert query["answers"][1]["is_right"] is False and query["answers"][1]["class"] != name
    assert measured.files == SameClass(num_lists=3, list_length=2).measure(subject).files


@pytest.mark.parametrize("own", [True, False])
def test_long_lists_are_those_of_a_loop_and_searched_for_the_drawn_alone(own, monkeypatch):
    images, labels = rows_of(300, 6, 0), labels_of(300, 4, 1)
    others, other_labels = (images, labels) if own else (rows_of(200, 6, 2), labels_of(200, 4, 3))
    gallery = None if own else Gallery(others, other_labels, np.arange(200))
    searched = []

    def spy(num_rows, block, work):
        found = spread(num_rows, block, work)
        searched.append(found.shape)
        return found

    monkeypatch.setattr("eval.evaluations.same_class.spread", spy)
    measured = SameClass(num_lists=5, list_length=150).measure(Subject(images, labels, gallery=gallery))
    assert searched == [(300, 10), (5, 150)]
    for query in measured.files[FILE]["queries"]:
        i = query["sample"]
        cosines = images[i].astype(float) @ others.T.astype(float) + 1e-6 * (other_labels != labels[i])
        expected = [j for j in np.argsort(-cosines) if not (own and j == i)][:150]
        assert [answer["sample"] for answer in query["answers"]] == expected
        assert [answer["is_right"] for answer in query["answers"]] == (other_labels[expected] == labels[i]).tolist()
    short = SameClass(num_lists=5, list_length=10).measure(Subject(images, labels, gallery=gallery))
    for long, query in zip(measured.files[FILE]["queries"], short.files[FILE]["queries"], strict=True):
        assert query["answers"] == long["answers"][:10]


def test_pictures_alone_in_their_class_count_nothing_and_are_said():
    images, labels = np.eye(3, dtype=np.float32)[[0, 0, 1]], np.array([0, 0, 1])
    measured = SameClass().measure(Subject(images, labels))
    assert measured.figures["same_class/map@10"] == pytest.approx(2 / 3) and measured.shown["num_alone"] == 1
    part = {
        "shards": ["x"],
        "figures": measured.figures,
        "intervals": {name: {"low": 0, "high": 1} for name in measured.figures},
    }
    assert "1 have no other of their class there" in SameClass.section(part | dict(measured.shown)).lead


def test_bad_input_is_named():
    with pytest.raises(DataError, match=r"same-class retrieval: 1 pictures with a class and 0 others"):
        SameClass().measure(Subject(np.eye(2, dtype=np.float32), np.array([0, -1])))
    with pytest.raises(ConfigError, match="list_length is 0: at least 1"):
        chosen([Choice("same_class", {"list_length": 0})])
    with pytest.raises(ConfigError, match="100 lists of 40,504 answers are 4,050,400; at most 1,000,000 are written"):
        chosen([Choice("same_class", {"list_length": 40_504})])


def measured_here():
    images, labels = rows_of(600, 16, 0, True), labels_of(600, 5, 1)
    measured = SameClass().measure(Subject(images, labels))
    return dict(measured.figures), dict(measured.intervals), dict(measured.files)


@pytest.mark.parametrize("num_processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_any_number_of_processes_gives_the_same_digits(num_processes):
    alone = measured_here()
    for found in gloo.run(num_processes, measured_here):
        assert found == alone
