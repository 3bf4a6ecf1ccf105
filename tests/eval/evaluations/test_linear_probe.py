"""The linear probe against scikit-learn and its own gradient; what it learns from; bad input; any number of ranks."""

import time

import gloo
import numpy as np
import pytest
import torch

from core.config import Choice
from core.errors import ConfigError, DataError
from eval.by_class import at_most, held_out, stratified_parts
from eval.evaluations import chosen
from eval.evaluations.evaluation import Gallery, Subject
from eval.evaluations.linear_probe import (
    REGULARISERS,
    LinearProbe,
    fit_with_sklearn,
    wins,
)
from eval.logistic_regression import fit

pytest.importorskip("sklearn", reason="scikit-learn is not installed (pip install 'shardclip[viz]')")
LIMITS = {"most_iterations": 2000, "tolerance": 1e-6}


def pictures(count, num_classes, seed, spread=1.0, width=12):
    """Unit features around the vectors of their classes."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % num_classes
    centres = np.random.default_rng(99).normal(size=(num_classes, width))
    rows = centres[labels] + spread * random.normal(size=(count, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), labels


def objective(fitted, features, labels, decay):
    """Value and gradient, as the formula says."""
    scores = features.astype(np.float64) @ fitted.weights.T + fitted.intercepts
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    errors = shares - np.eye(shares.shape[1])[labels]
    value = -np.log(shares[np.arange(len(labels)), labels]).mean() + decay / 2 * np.square(fitted.weights).sum()
    gradient = errors.T @ features / len(features) + decay * fitted.weights
    return value, max(np.abs(gradient).max(), np.abs(errors.mean(axis=0)).max()), shares


@pytest.mark.parametrize("num_classes", [2, 5])
@pytest.mark.parametrize("decay", [1e-1, 1e-3, 1e-6])
def test_both_solvers_find_the_optimum(num_classes, decay, monkeypatch):
    monkeypatch.setattr("eval.logistic_regression._BLOCK_BYTES", 8 * 70 * (12 + num_classes))  # several blocks
    features, labels = pictures(300, num_classes, 0, spread=2.0)
    found = [
        objective(solve(features, labels, num_classes, decay, **LIMITS), features, labels, decay)
        for solve in (fit_with_sklearn, fit)
    ]
    for value, steepest, shares in found:
        # 4: that of two opposite vectors is measured here, that of their difference was made small there
        assert steepest < 4e-6
        assert value == pytest.approx(found[0][0], abs=1e-7)
        np.testing.assert_allclose(shares, found[0][2], atol=1e-3)


def test_a_fit_that_goes_on_ends_where_one_from_nothing_does():
    features, labels = pictures(300, 4, 0, spread=2.0)
    for solve in (fit_with_sklearn, fit):
        whole = solve(features, labels, 4, 1e-4, **LIMITS)
        other = solve(features, labels, 4, 1e-2, **LIMITS)
        on = solve(features, labels, 4, 1e-4, start=other, **LIMITS)
        assert on.converged
        assert objective(on, features, labels, 1e-4)[0] == pytest.approx(objective(whole, features, labels, 1e-4)[0])


def test_a_fit_that_was_cut_short_says_so():
    features, labels = pictures(300, 4, 0, spread=2.0)
    for solve in (fit_with_sklearn, fit):
        assert not solve(features, labels, 4, 1e-6, most_iterations=3, tolerance=1e-6).converged


def test_the_probe_of_a_gallery_is_scikit_learns_own():
    from sklearn.linear_model import LogisticRegression

    gallery, gallery_labels = pictures(200, 4, 1, spread=1.2)
    images, labels = pictures(120, 4, 2, spread=1.2)
    subject = Subject(images, labels, gallery=Gallery(gallery, gallery_labels, np.arange(200)))
    measured = LinearProbe().measure(subject)
    (decay,) = measured.shown["regulariser"]["chosen"]
    centred = gallery - gallery.mean(axis=0)
    scale = np.mean(np.square(centred).sum(axis=1)) ** -0.5
    peer = LogisticRegression(C=1 / (decay * 200), tol=1e-8, max_iter=5000).fit(scale * centred, gallery_labels)
    expected = peer.score(scale * (images - gallery.mean(axis=0)), labels)
    assert measured.figures["linear_probe/accuracy"] == pytest.approx(expected) and 0.5 < expected < 1
    held_out = measured.shown["regulariser"]["held_out"]
    assert decay == REGULARISERS[int(np.argmax(held_out))]
    assert measured.shown["num_training"] == 200 and measured.shown["trained_on"] == "gallery"
    assert LinearProbe(solver="torch").measure(subject).figures == measured.figures


def test_labels_of_measured_pictures_teach_nothing():
    images, labels = pictures(100, 4, 2)
    noise = np.random.default_rng(0).integers(0, 4, 100)
    assert LinearProbe().measure(Subject(images, noise)).figures["linear_probe/accuracy"] < 0.45  # chance is 0.25
    measured = LinearProbe().measure(Subject(images, labels))
    assert measured.figures["linear_probe/accuracy"] > 0.8
    assert measured.shown["trained_on"] == "folds" and measured.shown["num_training"] == 80


def test_folds_deal_every_class_out_evenly():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(4), [2, 5, 11, 40]))
    parts = stratified_parts(labels, 5, seed=0)
    for label in range(4):
        counts = np.bincount(parts[labels == label], minlength=5)
        assert counts.max() - counts.min() <= 1


def test_a_share_of_every_class_is_held_out_and_never_all_of_it():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(5), [1, 2, 5, 11, 40]))
    counts = np.bincount(labels[held_out(labels, 0.2, seed=0)], minlength=5)
    assert counts.tolist() == [0, 1, 1, 2, 8]


def test_equal_scores_are_not_right():
    scores = np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0 - 1e-8], [2.0, 1.0, 0.0]])
    assert wins(scores, np.array([0, 1, 0])).tolist() == [False, False, True]
    images = np.repeat(pictures(1, 2, 0)[0], 40, axis=0) * (1 + 1e-8 * np.arange(40)[:, None])  # rounded apart
    assert LinearProbe().measure(Subject(images.astype(np.float32), np.arange(40) % 2)).figures == {
        "linear_probe/accuracy": 0.0,
        "linear_probe/mean_per_class": 0.0,
    }


def test_at_most_so_many_pictures_teach():
    gallery, gallery_labels = pictures(200, 4, 1)
    images, labels = pictures(40, 4, 2)
    subject = Subject(images, labels, gallery=Gallery(gallery, gallery_labels, np.arange(200)))
    assert LinearProbe(most_images=50).measure(subject).shown["num_training"] == 50


@pytest.mark.parametrize("most", [10, 21, 150])
def test_those_that_teach_are_drawn_by_class(most):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(4), [1, 2, 37, 160]))
    rows = np.flatnonzero(np.arange(200) % 10)  # some of them
    drawn = at_most(rows, labels, most, "probe")
    assert len(drawn) == most and set(drawn) <= set(rows.tolist()) and len(set(drawn)) == most
    there, taken = np.bincount(labels[rows], minlength=4), np.bincount(labels[drawn], minlength=4)
    assert (taken >= np.minimum(there, 2)).all()
    np.testing.assert_allclose(taken[2:], most * there[2:] / len(rows), atol=4)  # the small ones take some
    assert not np.array_equal(drawn, rows[: len(drawn)]) and np.array_equal(at_most(rows, labels, most, "probe"), drawn)
    assert np.array_equal(at_most(rows, labels, len(rows), "probe"), rows)


@pytest.mark.parametrize("solver", ["sklearn", "torch"])
def test_a_rare_class_is_learned_from_few_pictures_too(solver):
    labels = np.array([0] * 197 + [1] * 3)
    images = pictures(200, 2, 0)[0]
    subject = Subject(images[-20:], labels[-20:], gallery=Gallery(images, labels, np.arange(200)), classes=("a", "b"))
    measured = LinearProbe(solver=solver, most_images=10).measure(subject)
    assert measured.shown["num_training"] == 10


def test_bad_input_is_named():
    images, labels = pictures(20, 2, 0)
    subjects = {
        "all pictures are of one class, cat": Subject(images, np.zeros(20, dtype=int), classes=("cat",)),
        r"class dog has 1 picture, which cannot be learned from and measured \(1 such classes\)": Subject(
            images, np.array([0] * 19 + [1]), classes=("cat", "dog")
        ),
        "class hen has no picture in the training set": Subject(
            images, labels + 1, classes=("cat", "dog", "hen"), gallery=Gallery(images, labels, np.arange(20))
        ),
        "no class has 2 pictures to learn from": Subject(
            images, labels, gallery=Gallery(images[:2], labels[:2], labels[:2])
        ),
        "no class has 2 pictures to learn from, so": Subject(images[:4], labels[:4]),  # by folds: one of each
        r"most_images is 15, and of 10 classes 2 pictures each are needed to learn from. Set most_images=20": Subject(
            images, labels, gallery=Gallery(np.tile(images, (2, 1)), np.arange(40) % 10, np.arange(40))
        ),
    }
    for said, subject in subjects.items():
        with pytest.raises(DataError, match=said):
            LinearProbe(num_folds=2, most_images=15).measure(subject)
    with pytest.raises(ConfigError, match="num_folds is 1: at least 2"):
        chosen([Choice("linear_probe", {"num_folds": 1})])


def test_without_scikit_learn_the_probe_names_its_extra(monkeypatch):
    monkeypatch.setattr("eval.evaluations.linear_probe.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"shardclip\[viz\].*solver: torch"):
        LinearProbe()
    LinearProbe(solver="torch")


def measured_here():
    images, labels = pictures(150, 3, 0, spread=1.5)
    measured = LinearProbe().measure(Subject(images, labels))
    return dict(measured.figures), dict(measured.intervals), dict(measured.shown)


@pytest.mark.parametrize("num_processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_any_number_of_processes_gives_the_same_digits(num_processes):
    alone = measured_here()
    for found in gloo.run(num_processes, measured_here):
        assert found == alone


@pytest.mark.parametrize("solver", ["sklearn", "torch"])
def test_any_number_of_threads_gives_the_same_digits(solver, monkeypatch):
    """The launcher gives each of several processes fewer; where a long fit ends by a tolerance, rounding shows."""
    threadpoolctl = pytest.importorskip("threadpoolctl")
    monkeypatch.setattr("eval.evaluations.linear_probe.REGULARISERS", (1e-6,))
    images, labels = pictures(1500, 10, 0, spread=40.0, width=256)
    subject = Subject(images[:100], labels[:100], gallery=Gallery(images, labels, labels))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with threadpoolctl.threadpool_limits(threads):
                measured = LinearProbe(solver=solver).measure(subject)
            found.append((measured.figures, measured.shown))
            assert torch.get_num_threads() == threads  # afterwards as it was
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1] and found[0][1]["most_iterations"] > 200


def measured_by_slow_fits(by_folds, seconds):
    """Where a collective waits for 3 s; how many fits this process made, and how many there were."""
    import sklearn.linear_model  # noqa: F401  (now, and not in the first fit)

    gloo.wait_at_most(3)
    made = []

    def slow(*given, **more):
        made.append(time.sleep(seconds))
        return fit_with_sklearn(*given, **more)

    images, labels = pictures(60, 3, 0)
    gallery = None if by_folds else Gallery(images, labels, labels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eval.evaluations.linear_probe.fit_with_sklearn", slow)
        measured = LinearProbe(num_folds=3).measure(Subject(images, labels, gallery=gallery))
    return len(made), measured.shown["num_fits"]


@pytest.mark.slow
def test_processes_wait_for_one_fit_at_a_time_and_share_those_of_folds():
    assert gloo.run(2, measured_by_slow_fits, False, 0.7) == [(7, 7), (0, 7)]
    assert gloo.run(2, measured_by_slow_fits, True, 0) == [(14, 21), (7, 21)]


def test_fits_that_may_last_long_are_announced():
    said = []
    images, labels = pictures(60, 3, 0)
    for most_iterations in (1000, 1_000_000_000):
        LinearProbe(most_iterations=most_iterations).measure(Subject(images, labels, say=said.append))
    (line,) = said
    assert line.startswith(
        "linear_probe: 35 fits of 48 pictures x 12 numbers to 3 classes. One that needs all 1,000,000,"
    )
    assert "takes about 23 minutes" in line and "timeout_s" in line and "Lower most_images" in line
