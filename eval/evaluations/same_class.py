"""Same-class retrieval: how many of a picture's nearest neighbours are of its class, and how early they stand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from core.errors import ConfigError
from eval.evaluations.evaluation import Evaluation, Known, Measured, Need, Section, Shelf, Subject, Table
from eval.evaluations.knn import SAME, Compared, compared, expect_others
from eval.metrics import share_interval
from eval.spread import spread
from trainer.telemetry import names
from trainer.telemetry.names import AP_DEPTH, PRECISION_KS

if TYPE_CHECKING:
    from torch import Tensor

    from eval.report.drawing.style import Figure, Theme

FILE = "same_class.json"
NUM_EXAMPLES, SHOWN_ANSWERS = 6, 4
_MOST_ANSWERS = 1_000_000  # in the file, which is then some 150 MB
_FOUND = np.dtype([("row", "<i4"), ("cosine", "<f4")])
_SPOKEN = {names.same_class_precision(1): "precision@1: the nearest is of the class"} | {
    names.same_class_precision(k): f"precision@{k}: share of the {k} nearest" for k in PRECISION_KS[1:]
}


@dataclass(frozen=True)
class SameClass(Evaluation):
    """The nearest pictures of every picture: right are those of its class.

    Attributes:
        num_lists: pictures whose nearest are written to `same_class.json`, drawn once and for all.
        list_length: of their nearest, best first.
    """

    num_lists: int = 100
    list_length: int = 10

    needs: ClassVar[tuple[Need, ...]] = ("labels",)
    title: ClassVar[str] = "Same-class retrieval"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("num_lists", 0), ("list_length", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"same_class: {name} is {getattr(self, name)}: at least {least} is needed.")
        if (answers := self.num_lists * self.list_length) > _MOST_ANSWERS:
            raise ConfigError(
                f"same_class: {self.num_lists:,} lists of {self.list_length:,} answers are {answers:,}; at most "
                f"{_MOST_ANSWERS:,} are written. Lower num_lists or list_length."
            )

    def figures(self) -> tuple[str, ...]:
        """Precision at 1, 5 and 10, and mAP@10."""
        return (*(names.same_class_precision(k) for k in PRECISION_KS), names.SAME_CLASS_MAP)

    def expect(self, known: Known) -> None:
        """Raise where there is nothing to compare."""
        expect_others(known, "same-class retrieval")

    def measure(self, subject: Subject) -> Measured:
        """Of the pictures that have a class."""
        found = compared(subject, "same-class retrieval")
        _, labels, _, gallery_labels = found.sides
        nearest = nearest_of_class(*found.sides, AP_DEPTH, leave_one_out=found.leave_one_out, device=subject.device)
        is_right = gallery_labels[nearest["row"]] == labels[:, None]
        num_right = np.bincount(gallery_labels, minlength=labels.max() + 1)[labels] - found.leave_one_out
        values = {names.same_class_precision(k): is_right[:, :k].mean(axis=1) for k in PRECISION_KS}
        values[names.SAME_CLASS_MAP] = average_precision(is_right[:, :AP_DEPTH], num_right)
        lists = _Lists(found, subject.classes, nearest)
        written = self._written(lists, subject.device)
        own, others = _shelves(subject)
        return Measured(
            {name: float(np.mean(each)) for name, each in values.items()},
            {name: share_interval(each) for name, each in values.items()},
            shown={
                "num_images": len(labels),
                "num_gallery": None if found.leave_one_out else len(gallery_labels),
                "num_alone": int((num_right == 0).sum()),
                "classes": _by_class(labels, values, subject.classes),
                "examples": lists.examples(own, others) if own and others else [],
            },
            files={FILE: lists.named(*written, own, others)},
            of_each=values,
        )

    def _written(self, lists: _Lists, device: str) -> tuple[np.ndarray, np.ndarray]:
        """The queries that are drawn `(L,)`, and their nearest `(L, list_length)`: of these alone, where it is long."""
        found, (images, labels, gallery, gallery_labels) = lists.found, lists.found.sides
        drawn = np.sort(np.random.default_rng((0, 5)).permutation(len(images))[: self.num_lists])
        if self.list_length <= AP_DEPTH or not len(drawn):
            return drawn, lists.nearest[drawn, : self.list_length]
        sides = images[drawn], labels[drawn], gallery, gallery_labels
        rows = drawn if found.leave_one_out else None
        return drawn, nearest_of_class(*sides, self.list_length, rows=rows, device=device)

    @staticmethod
    def section(part: Mapping[str, Any]) -> Section:
        """Precision, mAP, and pictures with what they found."""
        where = (
            "the other labelled pictures of the set"
            if part["num_gallery"] is None
            else f"{part['num_gallery']:,} labelled pictures of the training set"
        )
        alone = f" {part['num_alone']:,} have no other of their class there and count 0." if part["num_alone"] else ""
        lead = (
            f"Each of {part['num_images']:,} labelled pictures looks for its nearest among {where}; right are those of "
            f"its class, and ties count against the model.{alone} mAP@{AP_DEPTH} is 100 % if those of the class come "
            f"first. 95 % intervals over pictures; {FILE} holds lists of answers."
        )
        spoken = _SPOKEN | {names.SAME_CLASS_MAP: f"mAP@{AP_DEPTH}: how early they stand"}
        rows = [
            (what, f"{100 * part['figures'][name]:.1f} %", _interval(part["intervals"][name]))
            for name, what in spoken.items()
        ]
        values = [
            (f"{100 * part['figures'][name]:.1f} %", name.split("/")[1])
            for name in (*map(names.same_class_precision, PRECISION_KS), names.SAME_CLASS_MAP)
        ]
        table = Table(("figure", "value", "95 % interval"), rows)
        return Section(lead, values, [table], examples=part["examples"])

    @staticmethod
    def charts(part: Mapping[str, Any], folder: Path, theme: Theme) -> dict[str, Figure]:
        """mAP of each class."""
        from eval.report.drawing.curves import class_bars

        shares = {one["class"]: one["map"] for one in part["classes"]}
        whole = part["figures"][names.SAME_CLASS_MAP]
        note = f"of the pictures of a class; line: {100 * whole:.1f} % of all"
        return {"by_class": class_bars(f"Same-class retrieval: mAP@{AP_DEPTH} by class", note, shares, whole, theme)}


def nearest_of_class(
    queries: np.ndarray,
    labels: np.ndarray,
    gallery: np.ndarray,
    gallery_labels: np.ndarray,
    k: int,
    *,
    leave_one_out: bool = False,
    rows: np.ndarray | None = None,
    device: str = "cpu",
) -> np.ndarray:
    """`(Q, k)` records of `row` in the gallery and `cosine`, nearest first, for every query (collective).

    Ties count against the model: a picture of another class stands before one of the query's class whose cosine is
    at most 1e-6 greater. Memory above the features and the result is some megabytes, however many pictures there are.

    Args:
        queries, gallery: `(Q, D)` and `(G, D)`, unit length.
        labels, gallery_labels: `(Q,)` and `(G,)`, from 0.
        k: of a smaller gallery, all of it: G, or G - 1.
        leave_one_out, rows: as for `Tiles`: who does not find itself.
    """
    import torch

    from eval.nearest import MOST_QUERIES, Tiles  # with torch, which recipes do without

    tiles = Tiles(queries, gallery, leave_one_out=leave_one_out, rows=rows, device=device)
    k = min(k, tiles.num_others)
    of_gallery = torch.from_numpy(np.ascontiguousarray(gallery_labels)).to(tiles.device)
    of_queries = torch.from_numpy(np.ascontiguousarray(labels)).to(tiles.device)

    def find(part: slice) -> np.ndarray:
        def put_others_first(similarity: Tensor, columns: slice) -> None:
            similarity.add_(of_queries[part, None] != of_gallery[columns], alpha=SAME)

        places, moved = tiles.nearest(part, k, put_others_first)
        found = np.empty(places.shape, dtype=_FOUND)
        found["row"] = places
        found["cosine"] = moved - SAME * (gallery_labels[places] != labels[part, None])
        return found

    return spread(len(queries), MOST_QUERIES, find)


def average_precision(is_right: np.ndarray, num_right: np.ndarray) -> np.ndarray:
    """`(Q,)` AP@k: the sum of precision@i over right places i <= k, divided by min(k, right answers that there are).

    Args:
        is_right: `(Q, k)`, nearest first.
        num_right: `(Q,)` right answers in the whole gallery; of none, it is 0.
    """
    k = is_right.shape[1]
    precision = np.cumsum(is_right, axis=1) / np.arange(1, k + 1)
    found: np.ndarray = (precision * is_right).sum(axis=1) / np.clip(num_right, 1, k)
    return found


@dataclass(frozen=True, eq=False)
class _Lists:
    """Answers for people and programs."""

    found: Compared
    classes: tuple[str, ...]
    nearest: np.ndarray  # (Q, k) of every query

    def named(
        self, queries: np.ndarray, nearest: np.ndarray, own: Shelf | None, others: Shelf | None
    ) -> dict[str, Any]:
        """Some queries `(L,)` with their nearest `(L, k)`, by sample and class."""
        return {
            "queries": [
                self._named(int(self.found.samples[i]), self.found.sides[1][i], own)
                | {"answers": [answer for answer, _ in self._answers(i, rows, others)]}
                for i, rows in zip(queries, nearest, strict=True)
            ]
        }

    def examples(self, own: Shelf, others: Shelf) -> list[dict[str, Any]]:
        """Queries drawn at random, each first in its row."""
        examples = []
        for i in np.random.default_rng((0, 4)).permutation(len(self.nearest))[:NUM_EXAMPLES]:
            first = {"picture": own.picture(int(self.found.samples[i])), "score": 1.0, "is_right": None}
            rows = [
                {"picture": others.picture(sample), **{name: answer[name] for name in ("score", "class", "is_right")}}
                for answer, sample in self._answers(i, self.nearest[i, :SHOWN_ANSWERS], None)
            ]
            examples.append({"title": self._class(self.found.sides[1][i]), "answers": [first, *rows]})
        return examples

    def _answers(self, query: int, nearest: np.ndarray, shelf: Shelf | None) -> list[tuple[dict[str, Any], int]]:
        _, labels, _, gallery_labels = self.found.sides
        answers = []
        for found in nearest:
            sample, label = int(self.found.gallery_samples[found["row"]]), gallery_labels[found["row"]]
            named = self._named(sample, label, shelf)
            judged = {"score": round(float(found["cosine"]), 4), "is_right": bool(label == labels[query])}
            answers.append((named | judged, sample))
        return answers

    def _named(self, sample: int, label: int, shelf: Shelf | None) -> dict[str, Any]:
        key = {} if shelf is None else {"key": shelf.key(sample)}
        return {"sample": sample, **key, "class": self._class(label)}

    def _class(self, label: int) -> str:
        return self.classes[label] if self.classes else str(label)


def _shelves(subject: Subject) -> tuple[Shelf | None, Shelf | None]:
    """Of the pictures that look, and of those that are found."""
    return subject.shelf, subject.shelf if subject.gallery is None else subject.gallery.shelf


def _by_class(labels: np.ndarray, values: Mapping[str, np.ndarray], classes: tuple[str, ...]) -> list[dict[str, Any]]:
    counts = np.bincount(labels)
    means = {name: np.bincount(labels, each) / np.maximum(counts, 1) for name, each in values.items()}
    return [
        {
            "class": classes[label] if classes else str(label),
            "num_images": int(counts[label]),
            "precision@1": round(float(means[names.same_class_precision(1)][label]), 4),
            "map": round(float(means[names.SAME_CLASS_MAP][label]), 4),
        }
        for label in np.flatnonzero(counts)
    ]


def _interval(ends: Mapping[str, float]) -> str:
    return f"{100 * ends['low']:.1f} to {100 * ends['high']:.1f}"
