"""Calibration: from similarity to the probability that the first answer is right (Platt 1999; Guo et al. 2017)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from core.errors import ConfigError, DataError
from eval.evaluations.evaluation import Evaluation, Known, Measured, Need, Section, Subject, Table
from eval.metrics import Interval, bootstrap
from eval.probability import (
    brier_skill,
    ece_interval,
    ece_of_chance,
    equal_count_bins,
    fit_platt,
    folds_of,
    out_of_fold,
)
from eval.spread import spread
from trainer.telemetry import names
from trainer.telemetry.names import DIRECTIONS, IMAGE_TO_TEXT, TEXT_TO_IMAGE

if TYPE_CHECKING:
    from eval.nearest import Tiles
    from eval.report.drawing.style import Figure, Theme

_FIGURES = (names.ECE, names.BRIER, names.BRIER_SKILL)
_BARS = 20  # of the histogram of probabilities


@dataclass(frozen=True)
class Calibration(Evaluation):
    """Whether a first answer is right, as a probability; each from a map that has seen no query of its image.

    Attributes:
        folds: parts that images are dealt into; a part's answers are judged by a map that was fitted on the others.
        seed: of the deal.
        by: what is mapped: the `lead` over all other answers, or the `cosine` alone (see `first_answers`).
    """

    folds: int = 5
    seed: int = 0
    by: Literal["lead", "cosine"] = "lead"

    needs: ClassVar[tuple[Need, ...]] = ("text",)
    title: ClassVar[str] = "Calibration"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.folds < 2:
            raise ConfigError(f"calibration: folds is {self.folds}; a map is judged on images it has not seen. Give 2.")
        if self.seed < 0:
            raise ConfigError(f"calibration: seed is {self.seed}. Give 0 or more.")

    def figures(self) -> tuple[str, ...]:
        """Three of each direction."""
        return tuple(names.calibration(direction, figure) for direction in DIRECTIONS for figure in _FIGURES)

    def expect(self, known: Known) -> None:
        """Raise where there are fewer images than folds; of captions made from class names: classes."""
        assert known.num_groups is not None
        if known.num_groups < self.folds:
            raise DataError(
                f"calibration: the captions are of {known.num_groups} different images or classes, fewer than folds "
                f"({self.folds}). Measure a larger set, or give folds={max(2, known.num_groups)}."
            )

    def measure(self, subject: Subject) -> Measured:
        """Of the first answer of every picture among all captions, and of every caption among all pictures.

        Raises:
            DataError: fewer images (of captions that were made from class names: classes) than folds.
        """
        from core.distributed import on_main  # with torch, which recipes do without

        assert subject.pairs is not None and subject.ranks is not None
        self.expect(subject.known)
        pairs, ranks = subject.pairs, subject.ranks
        scored = {
            IMAGE_TO_TEXT: first_answers(pairs.images, pairs.texts, subject.logit_scale, subject.device),
            TEXT_TO_IMAGE: first_answers(pairs.texts, pairs.images, subject.logit_scale, subject.device),
        }
        right = {IMAGE_TO_TEXT: ranks.image_to_text == 1, TEXT_TO_IMAGE: ranks.text_to_image == 1}
        groups = {IMAGE_TO_TEXT: np.arange(len(pairs.images)), TEXT_TO_IMAGE: pairs.text_groups}
        gallery = {IMAGE_TO_TEXT: len(pairs.texts), TEXT_TO_IMAGE: len(pairs.images)}
        column = 1 if self.by == "lead" else 0

        def judge() -> dict[str, tuple[dict[str, Interval], dict[str, Any]]]:
            return {d: self._judged(scored[d][:, column], right[d], groups[d]) for d in DIRECTIONS}

        found = on_main(judge)
        intervals = {names.calibration(d, figure): found[d][0][figure] for d in DIRECTIONS for figure in _FIGURES}
        shown = {d: {"gallery": gallery[d], **found[d][1]} for d in DIRECTIONS}
        figures = {name: interval.estimate for name, interval in intervals.items()}
        what = {"by": self.by, "scale": float(subject.logit_scale), "folds": self.folds, "seed": self.seed}
        return Measured(figures, intervals, {**what, "directions": shown})

    def _judged(
        self, x: np.ndarray, is_right: np.ndarray, groups: np.ndarray
    ) -> tuple[dict[str, Interval], dict[str, Any]]:
        """The figures of one direction, and what is shown of it."""
        fold = folds_of(groups, self.folds, self.seed)
        found = out_of_fold(x, is_right, fold)
        squares, of_constant = (found.mapped - is_right) ** 2, (found.constant - is_right) ** 2
        intervals = {
            names.ECE: ece_interval(found.mapped, is_right, groups),
            names.BRIER: bootstrap(squares, groups),
            names.BRIER_SKILL: brier_skill(squares, of_constant, groups),
        }
        shown = {
            "num_queries": len(x),
            "base_rate": float(is_right.mean()),
            "base_rate_of_other_folds": [float(is_right[fold != k].mean()) for k in range(self.folds)],
            "map": asdict(fit_platt(x, is_right)),
            "bins": _bins(found.mapped, is_right),
            "histogram": np.histogram(found.mapped, _BARS, (0, 1))[0].tolist(),
            "ece_of_chance": ece_of_chance(found.mapped),
            "brier_of_constant": float(of_constant.mean()),
            "brier_difference": asdict(bootstrap(squares - of_constant, groups)),
        }
        return intervals, shown

    @staticmethod
    def section(part: Mapping[str, Any]) -> Section:
        """What the probabilities are worth, and the map of each direction."""
        directions = part["directions"]
        spoken = [direction.replace("_", " ") for direction in directions]
        columns = [_column(part, direction) for direction in directions]
        errors = [part["figures"][names.calibration(direction, names.ECE)] for direction in directions]
        values = [
            (f"{100 * error:.1f} %", f"calibration error, {way}") for error, way in zip(errors, spoken, strict=True)
        ]
        rows = [(what, *(column[what] for column in columns)) for what in columns[0]]
        return Section(_lead(part), values, (Table(("", *spoken), rows),))

    @staticmethod
    def charts(part: Mapping[str, Any], folder: Path, theme: Theme) -> dict[str, Figure]:
        """How often answers of a probability are right, and how many have it."""
        from eval.report.drawing.reliability import reliability

        return {"reliability": reliability(part["directions"], theme)}


def first_answers(queries: np.ndarray, gallery: np.ndarray, scale: float, device: str = "cpu") -> np.ndarray:
    """`(Q, 2)` float64 of each query's first answer: its cosine, and its lead over all other answers (collective).

    The lead is the log odds that the model itself gives the answer: `scale * cosine - log(sum of exp(scale * cosine)
    over all others)`. It falls as the gallery grows; the cosine does not know of others. Similarities are read tile by
    tile: memory above the features is some megabytes, however many there are.

    Args:
        queries, gallery: `(Q, D)` and `(G, D)`, unit length; G is at least 2.
        scale: 1 / temperature that the model learned.
    """
    from eval.nearest import MOST_QUERIES, Tiles  # with torch, which recipes do without

    tiles = Tiles(queries, gallery, device=device)
    return spread(len(queries), MOST_QUERIES, lambda part: _leads(tiles, part, scale))


def _leads(tiles: Tiles, part: slice, scale: float) -> np.ndarray:
    """`(q, 2)` of some queries.

    The best so far and the log of the sum over all others are carried from tile to tile; whichever of two bests is
    left behind joins the others. The best is never in the sum: of a sure answer the others would be lost beside it.
    Exponentials are taken below a tile's second, so that float32 holds them.
    """
    import torch

    best = others = None
    for _, similarity in tiles.of(part):
        first, place = similarity.max(dim=1, keepdim=True)
        similarity.scatter_(1, place, -torch.inf)
        second = similarity.amax(dim=1, keepdim=True).clamp(min=-2)  # of a tile of one row there is none
        behind = similarity.sub_(second).mul_(scale).exp_().sum(dim=1).double()
        first, rest = first[:, 0].double(), behind.log() + scale * second[:, 0].double()
        if best is None or others is None:
            best, others = first, rest
            continue
        left_behind = scale * torch.minimum(best, first)
        others = torch.stack([others, rest, left_behind]).logsumexp(dim=0)
        best = torch.maximum(best, first)
    assert best is not None and others is not None, "there is a gallery"
    return torch.stack([best, scale * best - others], dim=1).cpu().numpy()


def _bins(probability: np.ndarray, is_right: np.ndarray) -> list[dict[str, float]]:
    bins = equal_count_bins(probability)
    return [
        {
            "predicted": float(probability[bins == b].mean()),
            "right": float(is_right[bins == b].mean()),
            "count": int((bins == b).sum()),
        }
        for b in np.unique(bins)
    ]


def _column(part: Mapping[str, Any], direction: str) -> dict[str, str]:
    """What the table says of a direction, by the name of the row."""
    own = part["directions"][direction]
    ece, brier, skill = (part["intervals"][names.calibration(direction, figure)] for figure in _FIGURES)
    slope, bias = own["map"]["slope"], own["map"]["bias"]
    return {
        "queries": f"{own['num_queries']:,}",
        "gallery": f"{own['gallery']:,}",
        "first answers that are right": f"{100 * own['base_rate']:.1f} %",
        "ECE": _ends(ece, 3),
        "ECE of a perfect map, by chance": f"{own['ece_of_chance']:.3f}",
        "Brier score": _ends(brier, 3),
        "Brier score of the constant": f"{own['brier_of_constant']:.3f}",
        "difference": _ends(own["brier_difference"], 4),
        "Brier skill": _ends(skill, 3),
        "log odds, fitted on all queries": f"{slope:.4g} x {part['by']} {'+' if bias >= 0 else '-'} {abs(bias):.4g}",
    }


def _lead(part: Mapping[str, Any]) -> str:
    what = (
        f"its lead over all other answers, at the scale {part['scale']:.3g} that the model learned"
        if part["by"] == "lead"
        else "its cosine"
    )
    return (
        f"How probable it is that the first answer to a query is right, from {what}. Images were dealt into "
        f"{part['folds']} folds; each probability is from a map fitted on the others. ECE is how far probabilities "
        "and shares are apart in ten bins: read it beside what chance alone makes of a perfect map on as many queries. "
        "The constant gives every query the share that is right in the other folds; a Brier difference below 0 is a "
        "gain, and one whose interval excludes 0 is more than chance."
    )


def _ends(interval: Mapping[str, float], digits: int) -> str:
    estimate, low, high = (f"{interval[end]:.{digits}f}" for end in ("estimate", "low", "high"))
    return f"{estimate} ({low} to {high})"
