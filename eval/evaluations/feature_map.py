"""Feature map: the pictures' features drawn as points of a plane by PCA, t-SNE and UMAP, and how far to trust each."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from core.errors import ConfigError, DataError
from eval.evaluations.evaluation import Evaluation, Known, Measured, Section, Subject
from eval.report.map_html import map_html
from eval.report.marks import NO_CLASS, grouped

if TYPE_CHECKING:
    from eval.report.drawing.style import Figure, Theme

SPOKEN = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}  # Pearson 1901, van der Maaten and Hinton 2008, McInnes 2018
_LIBRARIES = {"pca": "sklearn", "tsne": "sklearn", "umap": "umap"}
MOST_POINTS = 10_000  # that a page can hold and a browser can move over
LEAST_POINTS = 8
NEAREST = 3  # neighbours of a point that the page tells
MOST_THUMBNAILS = 400  # some 2 KB each: the page stays small
_THUMBNAIL_SIDE, _SHEET_COLUMNS = 64, 20
_MOST_LETTERS = 90  # of a caption
_SAME = 1e-6  # features closer than this are equal
_AS_NEAR = 1e-9  # and so are squared distances: a collapsed encoder's rows are rounded apart
_BLOCK_BYTES = 32 * 2**20


@dataclass(frozen=True)
class FeatureMap(Evaluation):
    """Maps of the pictures; each has its trustworthiness, PCA also the share of the variance that its plane holds."""

    methods: tuple[str, ...] = ("pca", "tsne", "umap")  # pca, tsne, umap
    most_points: int = 2_000  # pictures drawn by the seed; at most 10,000
    perplexity: float = 30.0  # of t-SNE; of few points at most a third
    num_neighbours: int = 15  # of UMAP, and of trustworthiness; of few points less than half
    seed: int = 0  # of the drawing and of both maps

    title: ClassVar[str] = "Feature map"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.methods or len(set(self.methods)) < len(self.methods) or set(self.methods) - set(SPOKEN):
            raise ConfigError(
                f"feature_map: methods is {list(self.methods)}: name some of {', '.join(SPOKEN)}, each once."
            )
        bounds = {"most_points": (LEAST_POINTS, MOST_POINTS), "perplexity": (1, 500), "num_neighbours": (2, 200),
                  "seed": (0, 2**32 - 1)}  # fmt: skip
        for name, (least, most) in bounds.items():
            if not least <= getattr(self, name) <= most:
                raise ConfigError(
                    f"feature_map: {name} is {getattr(self, name)}: from {least} to {most:,} are possible."
                )
        for method in self.methods:
            if find_spec(_LIBRARIES[method]) is None:
                needed = {"sklearn": "scikit-learn", "umap": "umap-learn"}[_LIBRARIES[method]]
                raise ConfigError(
                    f"feature_map: '{method}' needs {needed}, which is not installed: run `pip install "
                    "'shardclip[viz]'`, or name other methods."
                )

    def figures(self) -> tuple[str, ...]:
        """Of each method."""
        explained = ("feature_map/pca/explained",) if "pca" in self.methods else ()
        return (*(_trust(method) for method in self.methods), *explained)

    def expect(self, known: Known) -> None:
        """Raise where there are fewer than 8 pictures."""
        if known.num_images < LEAST_POINTS:
            raise DataError(
                f"feature_map: {known.num_images} pictures are too few for a map: at least {LEAST_POINTS} are needed."
            )

    def measure(self, subject: Subject) -> Measured:
        """On one rank, by one thread: the same digits whatever the number of processes and cores.

        The others wait for one map at a time.

        Raises:
            DataError: there are fewer than 8 pictures.
        """
        from core.distributed import on_main  # with torch, which recipes do without

        self.expect(subject.known)
        drawn = np.random.default_rng((self.seed, self.most_points)).permutation(len(subject.images))
        drawn = drawn[: self.most_points]
        found = {
            method: on_main(partial(self._mapped, method, subject.images[np.sort(drawn)])) for method in self.methods
        }
        return on_main(lambda: self._measured(subject, drawn, found))

    def _settings(self, count: int) -> tuple[float, int]:
        """Perplexity and neighbours for so many points."""
        return min(self.perplexity, (count - 1) / 3), min(self.num_neighbours, (count - 1) // 2)

    def _mapped(self, method: str, images: np.ndarray) -> tuple[np.ndarray, float, float]:
        """What `plane` gives, and the trustworthiness."""
        import sklearn.manifold  # noqa: F401  (the limit holds for what is loaded by now, scipy too)
        from threadpoolctl import threadpool_limits

        perplexity, num_neighbours = self._settings(len(images))
        with threadpool_limits(1):  # sums of several threads round otherwise
            points, share = plane(method, images, perplexity, num_neighbours, self.seed)
            return points, share, trustworthiness(images, points, num_neighbours)

    def _measured(
        self, subject: Subject, drawn: np.ndarray, found: Mapping[str, tuple[np.ndarray, float, float]]
    ) -> Measured:
        from threadpoolctl import threadpool_limits

        rows = np.sort(drawn)
        images = subject.images[rows]
        perplexity, num_neighbours = self._settings(len(rows))
        figures = {_trust(method): trust for method, (_, _, trust) in found.items()}
        if "pca" in found:
            figures["feature_map/pca/explained"] = found["pca"][1]
        with threadpool_limits(1):
            neighbours, cosines = nearest(images, min(NEAREST, len(rows) - 1))
        pictured = np.flatnonzero(np.isin(rows, drawn[:MOST_THUMBNAILS]))  # as random as the draw itself
        shown = {
            "maps": {method: scaled(points).T.tolist() for method, (points, _, _) in found.items()},
            "of": len(subject.images),
            "perplexity": round(perplexity, 1),
            "num_neighbours": num_neighbours,
            "samples": subject.samples[rows].tolist(),
            "neighbours": neighbours.tolist(),
            "cosines": cosines.round(3).tolist(),
            "captions": _captions(subject, rows),
            "sheet": _sheet(subject, rows, pictured),
            **_classes(subject, rows),
        }
        return Measured(figures, shown=shown)

    @staticmethod
    def section(part: Mapping[str, Any]) -> Section:
        """How to read the maps, and the maps to move over."""
        maps, count = part["maps"], len(part["samples"])
        drawn = (
            f"All {count:,} pictures"
            if count == part["of"]
            else f"{count:,} of {part['of']:,} pictures, drawn at random,"
        )
        colour = f" Colour and shape: {part['coloured_by']}." if part["coloured_by"] else ""
        lead = (
            f"{drawn} as points of a plane: near points have similar features.{colour} Trustworthiness, from 0 to 1, "
            f"says how far the {part['num_neighbours']} nearest of a point on a map are the nearest by the features "
            "themselves. Distances between groups, and the sizes of groups, mean little in t-SNE and UMAP."
        )
        figures = part["figures"]
        values = [(f"{figures[_trust(method)]:.3f}", f"trustworthiness of {SPOKEN[method]}") for method in maps]
        if "pca" in maps:
            values.append(
                (f"{100 * figures['feature_map/pca/explained']:.1f} %", "of the variance lies in the plane of PCA")
            )
        notes = {method: _note(part, method) for method in maps}
        pictures = (part["sheet"]["picture"],) if part["sheet"] else ()
        return Section(lead, values, html=map_html(part, SPOKEN, notes), pictures=pictures)

    @staticmethod
    def charts(part: Mapping[str, Any], folder: Path, theme: Theme) -> dict[str, Figure]:
        """Each map, for print and for slides."""
        from eval.report.drawing.scatter import scatter_map  # with matplotlib

        groups = grouped(part["labels"], part["classes"])
        return {
            f"{method}_map": scatter_map(np.array(points).T, groups, f"{SPOKEN[method]} of the pictures' features",
                                         _note(part, method), theme)
            for method, points in part["maps"].items()
        }  # fmt: skip


def plane(
    method: str, images: np.ndarray, perplexity: float, num_neighbours: int, seed: int
) -> tuple[np.ndarray, float]:
    """Points `(N, 2)` of rows `(N, D)`, and the share of the variance that they hold (PCA; else 0).

    Rows that are all alike (a collapsed encoder) are one point, and hold nothing.
    """
    if np.ptp(images, axis=0).max() < _SAME:
        return np.zeros((len(images), 2)), 0.0
    if method == "pca":
        from sklearn.decomposition import PCA

        pca = PCA(2, svd_solver="covariance_eigh").fit(images.astype(np.float64))
        return pca.transform(images.astype(np.float64)), float(pca.explained_variance_ratio_.sum())
    if method == "tsne":
        from sklearn.manifold import TSNE

        return TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(images), 0.0
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Tensorflow not installed", ImportWarning)  # its parametric form, unused here
        from umap import UMAP
    return UMAP(n_neighbors=num_neighbours, random_state=seed, n_jobs=1).fit_transform(images), 0.0


def scaled(points: np.ndarray) -> np.ndarray:
    """`(N, 2)` from 0 to 1 with three digits: both axes by one factor, the shorter one in the middle."""
    low, high = points.min(axis=0).astype(np.float64), points.max(axis=0).astype(np.float64)
    size = max(float((high - low).max()), np.finfo(np.float64).tiny)
    return np.round((points - (low + high) / 2) / size + 0.5, 3) + 0.0


def trustworthiness(images: np.ndarray, points: np.ndarray, k: int) -> float:
    """How far the k nearest of each point are the k nearest of its features (Venna and Kaski 2001, eq. 3), 0 to 1.

    It is scikit-learn's figure, in blocks of rows: that one needs 24 bytes for each pair. Ties count against the map:
    of rows whose features are equally near, its neighbour is the last. Where they bring the figure below 0, it is 0.
    """
    count = len(images)
    penalty = 0
    for rows in _blocks(count):
        near = np.argpartition(_distances(points, rows), k - 1, axis=1)[:, :k]
        distances = _distances(images, rows)
        for own in np.take_along_axis(distances, near, axis=1).T:
            rank = (distances <= own[:, None] + _AS_NEAR).sum(axis=1)
            penalty += int(np.maximum(rank - k, 0).sum())
    return max(0.0, 1.0 - penalty * 2.0 / (count * k * (2.0 * count - 3.0 * k - 1.0)))


def nearest(images: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each row the others nearest to it `(N, count)`, and their cosines `(N, count)`."""
    neighbours, cosines = [], []
    for rows in _blocks(len(images)):
        similarity = images[rows] @ images.T
        np.fill_diagonal(similarity[:, rows.start :], -np.inf)
        order = np.argsort(-similarity, axis=1, kind="stable")[:, :count]
        neighbours.append(order)
        cosines.append(np.take_along_axis(similarity, order, axis=1))
    return np.concatenate(neighbours), np.concatenate(cosines)


def _blocks(count: int) -> list[slice]:
    size = max(1, _BLOCK_BYTES // (8 * count))
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _distances(rows: np.ndarray, part: slice) -> np.ndarray:
    """Squared `(n, N)` of a part of the rows to all; to itself infinite."""
    rows = rows.astype(np.float64)
    lengths = (rows**2).sum(axis=1)
    squared = lengths[part, None] - 2 * rows[part] @ rows.T + lengths
    np.fill_diagonal(squared[:, part.start :], np.inf)
    return squared


def _classes(subject: Subject, rows: np.ndarray) -> dict[str, Any]:
    """What points are coloured by: the class that is known of them, else their topic, else nothing."""
    numbers, names, what = subject.labels, subject.classes, "class"
    if numbers is None and subject.topics is not None and (topics := subject.topics()) is not None:
        numbers, names, what = topics.numbers[subject.samples], topics.classes, "topic"
    if numbers is None:
        return {"labels": [NO_CLASS] * len(rows), "classes": [], "coloured_by": ""}
    own = numbers[rows]
    present = np.unique(own[own >= 0])
    place = np.full(len(names) + 1, NO_CLASS)
    place[present] = np.arange(len(present))
    return {"labels": place[own].tolist(), "classes": [_short(names[k]) for k in present], "coloured_by": what}


def _captions(subject: Subject, rows: np.ndarray) -> list[str]:
    """The first caption of each point; nothing where captions play no part, or nobody looks."""
    if subject.captions is None or subject.shelf is None:
        return []
    first = {int(sample): int(place) for sample, place in subject.captions[::-1]}
    samples = [int(sample) for sample in subject.samples[rows]]
    return [_short(subject.shelf.text({"sample": s, "place": first[s]})) if s in first else "" for s in samples]


def _sheet(subject: Subject, rows: np.ndarray, pictured: np.ndarray) -> dict[str, Any] | None:
    """Where the thumbnails of some points lie, in one picture."""
    if subject.shelf is None:
        return None
    samples = [int(sample) for sample in subject.samples[rows[pictured]]]
    place = subject.shelf.sheet(samples, _THUMBNAIL_SIDE, _SHEET_COLUMNS)
    return {"picture": place, "side": _THUMBNAIL_SIDE, "columns": _SHEET_COLUMNS, "points": pictured.tolist()}


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _MOST_LETTERS else text[: _MOST_LETTERS - 1].rstrip() + "…"


def _note(part: Mapping[str, Any], method: str) -> str:
    settings = {
        "pca": f"{100 * part['figures'].get('feature_map/pca/explained', 0):.1f} % of the variance",
        "tsne": f"perplexity {part['perplexity']:g}",
        "umap": f"{part['num_neighbours']} neighbours",
    }
    trust = f"trustworthiness {part['figures'][_trust(method)]:.3f}"
    return f"{len(part['samples']):,} pictures; {settings[method]}; {trust}"


def _trust(method: str) -> str:
    return f"feature_map/{method}/trustworthiness"
