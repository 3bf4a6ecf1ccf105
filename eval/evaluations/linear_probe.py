"""Linear probe: classes of frozen features by logistic regression (Radford et al. 2021, appendix A.3)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from core.errors import ConfigError, DataError
from eval.by_class import at_most, held_out, stratified_parts
from eval.evaluations.evaluation import Evaluation, Known, Measured, Need, Section, Subject
from eval.evaluations.knn import Compared, compared, expect_others
from eval.metrics import mean_over_classes, share_interval
from trainer.telemetry import names

if TYPE_CHECKING:
    from eval.logistic_regression import Fitted
    from eval.report.drawing.style import Figure, Theme

# Strongest first: of equal accuracies the strongest is taken. They go with the mean loss, and so with any number of
# pictures.
REGULARISERS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
HELD_OUT = 0.2  # of the training features, to choose the regulariser by
TOLERANCE = 1e-6  # of the gradient's largest component
_MOST_CELLS = 2**25  # features and logits; beyond, scikit-learn's float64 copies take more than a gigabyte
_SAME = 1e-4  # logits closer than this are equal: a fit ends before it tells them apart
_FRAMED = 65536  # rows at a time
_PER_SECOND = 5e9  # float64 products and sums, of one thread: scikit-learn's fits of 8,000 x 512 to 100 classes
_LONG_S = 300.0
_NAME = "linear probe"
_COLLAPSED = 1e-10  # mean square distance of unit features from their mean: below it there is rounding alone

Fit = Callable[[np.ndarray, np.ndarray, int, float, "Fitted | None"], "Fitted"]


@dataclass(frozen=True)
class LinearProbe(Evaluation):
    """A linear classifier on frozen features.

    Attributes:
        solver: sklearn: scikit-learn's L-BFGS on the CPU; torch: that of torch, in blocks on the evaluation's device;
            auto: sklearn up to 2^25 numbers of features and logits, torch beyond.
        most_images: training pictures at most, drawn once and for all: of every class like shares, but at least two.
        num_folds: where there is no gallery: parts of the set, each classified by what the others taught.
        most_iterations: of a fit.
    """

    solver: Literal["auto", "sklearn", "torch"] = "auto"
    most_images: int = 50_000
    num_folds: int = 5
    most_iterations: int = 1000

    needs: ClassVar[tuple[Need, ...]] = ("labels",)
    title: ClassVar[str] = "Linear probe"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("most_images", 10), ("num_folds", 2), ("most_iterations", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"linear_probe: {name} is {getattr(self, name)}: at least {least} is needed.")
        if self.solver != "torch" and find_spec("sklearn") is None:
            raise ConfigError(
                "linear_probe needs scikit-learn: `pip install 'shardclip[viz]'`, or do without it: solver: torch."
            )

    def figures(self) -> tuple[str, ...]:
        """Accuracy over pictures, and as the mean over classes."""
        return (names.LINEAR_PROBE, names.LINEAR_PROBE_BY_CLASS)

    def expect(self, known: Known) -> None:
        """Raise where nothing can be learned from so few pictures or classes, or not of some class."""
        expect_others(known, _NAME)
        assert known.labels is not None
        labels, is_own = known.labels[known.labels >= 0], known.gallery_labels is None
        self._splits(labels, labels if known.gallery_labels is None else known.gallery_labels, is_own, known.classes)

    def measure(self, subject: Subject) -> Measured:
        """Probes of folds are dealt out over the ranks, which meet after every fit: none waits for longer than one.

        A fit has one thread: the digits are the same whatever the number of processes and cores.
        """
        from core.distributed import act_together, gather_objects, rank, world_size  # with torch: not for recipes

        found = compared(subject, _NAME)
        splits = self._splits(found.sides[1], found.sides[3], found.leave_one_out, subject.classes)
        self._announce(found, splits, subject)
        learned: list[Learned] = []
        with _one_thread_of_torch():
            for start in range(0, len(splits), world_size()):
                own = splits[start + rank() : start + rank() + 1]  # in the last round, of some ranks none
                steps = self._learn(found, *own[0], subject.device) if own else repeat(None)
                last = None
                for _ in range(_num_fits()):
                    last = act_together(partial(next, steps))
                learned += [each for each in gather_objects(last) if each is not None]
        is_right = np.zeros(len(found.sides[0]), dtype=bool)
        for (_, measured), each in zip(splits, learned, strict=True):
            is_right[measured] = each.is_right
        return _measured(is_right, found.sides[1], learned, found.leave_one_out, subject.classes)

    @staticmethod
    def section(part: Mapping[str, Any]) -> Section:
        """Accuracies, how they came about, and every class."""
        figures, intervals = part["figures"], part["intervals"]
        learned = (
            f"{part['num_training']:,} labelled pictures of the training set"
            if part["trained_on"] == "gallery"
            else f"the set itself: each of {part['num_folds']} parts is classified by what the others taught"
        )
        late = " Some fits stopped at the most iterations allowed." if part["num_unconverged"] else ""
        lead = (
            f"{part['num_images']:,} pictures of {len(part['classes'])} classes, classified by logistic regression on "
            f"frozen features, learned from {learned}. The regulariser is chosen on {100 * HELD_OUT:.0f} % of the "
            f"training pictures, which are not measured. 95 % intervals over pictures.{late}"
        )
        spoken = ((names.LINEAR_PROBE, "accuracy"), (names.LINEAR_PROBE_BY_CLASS, "mean of the classes"))
        between = {name: f"({100 * ends['low']:.1f} to {100 * ends['high']:.1f})" for name, ends in intervals.items()}
        alone = "(no interval: a class has one picture)"
        values = [(f"{100 * figures[name]:.1f} %", f"{what} {between.get(name, alone)}") for name, what in spoken]
        return Section(lead, [*values, (f"{100 / len(part['classes']):.1f} %", "chance of even classes")])

    @staticmethod
    def charts(part: Mapping[str, Any], folder: Path, theme: Theme) -> dict[str, Figure]:
        """Accuracy over the grid, and of each class."""
        from eval.report.drawing.curves import class_bars, grid_curve

        curve = part["regulariser"]
        points = curve["grid"], curve["held_out"], curve["chosen"]
        marked = "chosen" if len(curve["chosen"]) == 1 else "chosen by a part of the set"
        held = f"accuracy of held-out training pictures, %; orange: {marked}"
        shares = {one["class"]: one["accuracy"] for one in part["classes"]}
        whole = part["figures"][names.LINEAR_PROBE]
        note = f"of the pictures of a class, %; line: {100 * whole:.1f} % of all"
        return {
            "regulariser": grid_curve("Linear probe: regulariser", held, *points, theme),
            "by_class": class_bars("Linear probe by class", note, shares, whole, theme),
        }

    def _splits(
        self, labels: np.ndarray, gallery_labels: np.ndarray, by_folds: bool, classes: Sequence[str]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each probe the rows of the gallery that teach it, and the rows that it is measured by.

        Raises:
            DataError: nothing can be learned from so few pictures or classes, or not of some class.
        """
        _expect_classes(labels, gallery_labels, by_folds, classes)
        if by_folds:
            folds = stratified_parts(labels, self.num_folds, seed=6)
            splits = [(np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)) for fold in np.unique(folds)]
        else:
            splits = [(np.arange(len(gallery_labels)), np.arange(len(labels)))]
        splits = [
            (at_most(training, gallery_labels, self.most_images, _NAME), measured) for training, measured in splits
        ]
        if any(np.bincount(gallery_labels[training]).max() < 2 for training, _ in splits):
            raise DataError(
                "linear probe: no class has 2 pictures to learn from, so the regulariser cannot be chosen by some that "
                "are held out. Label more pictures, or leave the linear probe out."
            )
        return splits

    def _learn(
        self, found: Compared, training: np.ndarray, measured: np.ndarray, device: str
    ) -> Iterator[Learned | None]:
        """Choose the regulariser by a held-out part, and fit all with it: a fit at each step, the last gives the rest.

        Args:
            training, measured: rows of the gallery that teach, and of the pictures that are classified.
        """
        images, labels, gallery, gallery_labels = found.sides
        features, (present, targets) = gallery[training], np.unique(gallery_labels[training], return_inverse=True)
        centre, scale = _frame(features)
        features -= centre
        features *= scale
        fit = self._solver(features.size + len(features) * len(present), device)
        is_held_out = held_out(targets, HELD_OUT, seed=7)
        fits: list[Fitted] = []
        accuracies = []
        part, part_targets = features[~is_held_out], targets[~is_held_out]
        for decay in REGULARISERS:
            fits.append(fit(part, part_targets, len(present), decay, fits[-1] if fits else None))
            accuracies.append(float(np.mean(wins(fits[-1].scores(features[is_held_out]), targets[is_held_out]))))
            yield None
        best = int(np.argmax(accuracies))
        # Never all of a class were held out: the classes are the same.
        whole = fit(features, targets, len(present), REGULARISERS[best], fits[best])
        is_right = Probe(whole, present, centre, scale).is_right(images[measured], labels[measured])
        spent = [(each.iterations, each.converged) for each in (*fits, whole)]
        yield Learned(is_right, REGULARISERS[best], accuracies, len(training), spent)

    def _announce(self, found: Compared, splits: Sequence[tuple[np.ndarray, np.ndarray]], subject: Subject) -> None:
        """Say, before it begins, that a fit may last long: the other processes wait for it."""
        from core.distributed import is_main

        num_training = max(len(training) for training, _ in splits)
        width, num_classes = found.sides[2].shape[1], len(np.unique(found.sides[3]))
        most_s = 4.0 * num_training * width * num_classes * self.most_iterations / _PER_SECOND
        is_on_gpu = subject.device != "cpu" and self._is_by_torch(num_training * (width + num_classes))
        if is_main() and most_s > _LONG_S and not is_on_gpu:
            subject.say(
                f"linear_probe: {_num_fits() * len(splits)} fits of {num_training:,} pictures x {width:,} numbers to "
                f"{num_classes:,} classes. One that needs all {self.most_iterations:,} iterations takes about "
                f"{most_s / 60:.0f} minutes; other processes wait for timeout_s while training, and for 30 minutes in "
                "`shardclip eval`. Lower most_images or most_iterations if that is too long."
            )

    def _is_by_torch(self, cells: int) -> bool:
        return self.solver == "torch" or (self.solver == "auto" and cells > _MOST_CELLS)

    def _solver(self, cells: int, device: str) -> Fit:
        if not self._is_by_torch(cells):
            return lambda features, labels, num_classes, decay, start: fit_with_sklearn(
                features, labels, num_classes, decay, start, most_iterations=self.most_iterations, tolerance=TOLERANCE
            )
        from eval.logistic_regression import fit

        return lambda features, labels, num_classes, decay, start: fit(
            features, labels, num_classes, decay, start=start, most_iterations=self.most_iterations,
            tolerance=TOLERANCE, device=device,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Probe:
    """A classifier of features less `centre`, times `scale`, for the classes in `present`."""

    fitted: Fitted
    present: np.ndarray
    centre: np.ndarray
    scale: float

    def is_right(self, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """`(N,)` bool of images `(N, D)`; a class that was not learned is never right."""
        own = np.minimum(np.searchsorted(self.present, labels), len(self.present) - 1)
        rows = max(1, 2**22 // (images.shape[1] + len(self.present)))
        parts = [slice(start, start + rows) for start in range(0, len(images), rows)]
        best = [wins(self.fitted.scores((images[part] - self.centre) * self.scale), own[part]) for part in parts]
        return np.concatenate(best) & (self.present[own] == labels)


@dataclass(frozen=True, eq=False)
class Learned:
    """What a probe found.

    Attributes:
        is_right: `(n,)` bool of the pictures that it measured.
        held_out: accuracy of each regulariser of the grid.
        fits: iterations of each fit on the way, and whether it converged.
    """

    is_right: np.ndarray
    decay: float
    held_out: list[float]
    num_training: int
    fits: list[tuple[int, bool]]


def fit_with_sklearn(
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    decay: float,
    start: Fitted | None = None,
    *,
    most_iterations: int,
    tolerance: float,
) -> Fitted:
    """The same optimum as `eval.logistic_regression.fit`, by scikit-learn's LogisticRegression in float64."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    from eval.logistic_regression import Fitted

    # Of two classes it has one vector, the difference of two opposite ones, whose squares add up to half of its own.
    halves = 2 if num_classes == 2 else 1
    model = LogisticRegression(
        C=halves / (decay * len(features)), tol=tolerance, max_iter=most_iterations, warm_start=start is not None
    )
    if start is not None:
        model.coef_ = start.weights if num_classes > 2 else start.weights[1:] - start.weights[:1]
        model.intercept_ = start.intercepts if num_classes > 2 else start.intercepts[1:] - start.intercepts[:1]
    # The limit holds for libraries that are loaded by now: scikit-learn's and scipy's are.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the report says so
        model.fit(features.astype(np.float64), labels)
    weights, intercepts = model.coef_, model.intercept_
    if num_classes == 2:
        weights, intercepts = np.concatenate([-weights, weights]) / 2, np.concatenate([-intercepts, intercepts]) / 2
    iterations = int(model.n_iter_.max())
    return Fitted(weights, intercepts - intercepts.mean(), iterations, iterations < most_iterations)


@contextmanager
def _one_thread_of_torch() -> Iterator[None]:
    """Sums of several threads round otherwise, and a fit that ends by a tolerance shows it."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def wins(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """`(N,)` bool: whether the score of the own class `(N, K)` is above all others; equal ones are not right."""
    others = scores.copy()
    own = np.arange(len(labels)), labels
    others[own] = -np.inf
    is_best: np.ndarray = scores[own] > others.max(axis=1) + _SAME
    return is_best


def _frame(features: np.ndarray) -> tuple[np.ndarray, float]:
    """Mean, and what makes the mean square distance from it 1: a regulariser then means the same for every encoder."""
    centre = features.mean(axis=0, dtype=np.float64).astype(np.float32)
    blocks = (features[start : start + _FRAMED] for start in range(0, len(features), _FRAMED))
    square = sum(float(np.square(block - centre).sum(dtype=np.float64)) for block in blocks) / len(features)
    return centre, 0.0 if square < _COLLAPSED else square**-0.5


def _expect_classes(labels: np.ndarray, gallery_labels: np.ndarray, is_own: bool, classes: Sequence[str]) -> None:
    """Raise where nothing can be learned, or not of some class."""
    num_taught = np.bincount(gallery_labels, minlength=labels.max() + 1)
    if (num_taught > 0).sum() < 2:
        only = _called(int(num_taught.argmax()), classes)
        raise DataError(f"linear probe: all pictures are of one class, {only}. Label pictures of at least two.")
    least = 2 if is_own else 1
    few = [label for label in np.unique(labels) if num_taught[label] < least]
    if few:
        what, remedy = (
            ("no picture in the training set", "Label training pictures of it")
            if num_taught[few[0]] == 0
            else ("1 picture, which cannot be learned from and measured", "Label more pictures of it")
        )
        raise DataError(
            f"linear probe: class {_called(int(few[0]), classes)} has {what} ({len(few)} such classes). {remedy}, or "
            "leave the linear probe out."
        )


def _measured(
    is_right: np.ndarray, labels: np.ndarray, learned: Sequence[Learned], by_folds: bool, classes: Sequence[str]
) -> Measured:
    counts = np.bincount(labels)
    shares = np.bincount(labels, is_right) / np.maximum(counts, 1)
    accuracy, (by_class, interval) = share_interval(is_right), mean_over_classes(is_right, labels)
    fits = [each for probe in learned for each in probe.fits]
    return Measured(
        {names.LINEAR_PROBE: accuracy.estimate, names.LINEAR_PROBE_BY_CLASS: by_class},
        {names.LINEAR_PROBE: accuracy, **({names.LINEAR_PROBE_BY_CLASS: interval} if interval else {})},
        shown={
            "num_images": len(labels),
            "trained_on": "folds" if by_folds else "gallery",
            "num_folds": len(learned),
            "num_training": round(float(np.mean([probe.num_training for probe in learned]))),
            "regulariser": {
                "grid": list(REGULARISERS),
                "held_out": np.mean([probe.held_out for probe in learned], axis=0).round(4).tolist(),
                "chosen": sorted({probe.decay for probe in learned}, reverse=True),
            },
            "num_fits": len(fits),
            "num_unconverged": sum(not converged for _, converged in fits),
            "most_iterations": max(iterations for iterations, _ in fits),
            "classes": [
                {
                    "class": _called(int(label), classes),
                    "num_images": int(counts[label]),
                    "accuracy": round(float(shares[label]), 4),
                }
                for label in np.flatnonzero(counts)
            ],
        },
        of_each={names.LINEAR_PROBE: is_right},
    )


def _num_fits() -> int:
    """Of a probe: one for each regulariser, and one of all its pictures."""
    return len(REGULARISERS) + 1


def _called(label: int, classes: Sequence[str]) -> str:
    return classes[label] if classes else str(label)
