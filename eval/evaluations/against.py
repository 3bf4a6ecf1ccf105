"""The same pictures by other weights: what training, or fine-tuning, has gained and lost, with paired intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from core.errors import ConfigError
from eval.evaluations.evaluation import (
    UNTRAINED,
    Evaluation,
    Known,
    Measured,
    Need,
    OtherWeights,
    Section,
    Subject,
    Table,
)
from eval.evaluations.knn import expect_others, right_by_neighbours
from eval.metrics import Interval, Ranks, bootstrap, paired_bootstrap, recall_at_k
from trainer.models.config import BareTower
from trainer.telemetry import names
from trainer.telemetry.names import IMAGE_TO_TEXT, RECALL_KS, TEXT_TO_IMAGE

_SPOKEN = {names.KNN: "k-NN accuracy, 20 neighbours", names.KNN1: "k-NN accuracy, the nearest alone"} | {
    names.of_direction(d, names.recall(k)): f"{d.replace('_', ' ')} R@{k}" for d in names.DIRECTIONS for k in RECALL_KS
}


@dataclass(frozen=True)
class _OtherWeights(Evaluation):
    """Figures less those of other weights on the same pictures.

    Attributes:
        of: `untrained`, the weights that the run began with; or a run folder, RUN/best, RUN/latest or a checkpoint.
    """

    of: str = UNTRAINED

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.of.strip():
            raise ConfigError(f"of is blank: give {UNTRAINED}, a run folder or a checkpoint.")

    @property
    def _weights(self) -> OtherWeights:
        return self.of

    def other_weights(self) -> tuple[OtherWeights, ...]:
        """Those."""
        return (self._weights,)

    def _measured(self, differences: Mapping[str, Interval], theirs: Mapping[str, float]) -> Measured:
        intervals = {names.against(figure): interval for figure, interval in differences.items()}
        return Measured(
            {figure: interval.estimate for figure, interval in intervals.items()},
            intervals,
            shown={"of": str(self._weights), "theirs": dict(theirs)},
        )

    @staticmethod
    def section(part: Mapping[str, Any]) -> Section:
        """Both sets of figures, and the differences."""
        of = "the weights that the run began with" if part["of"] == UNTRAINED else part["of"]
        rows = []
        for figure, other in part["theirs"].items():
            interval = part["intervals"][names.against(figure)]
            low, gain, high = (f"{100 * interval[end]:+.1f}" for end in ("low", "estimate", "high"))
            shares = (f"{100 * share:.1f}" for share in (other + interval["estimate"], other))
            rows.append((_SPOKEN[figure], *shares, gain, f"{low} to {high}"))
        return Section(
            f"The same pictures by {of}. A difference whose 95 % interval excludes 0 is more than chance; queries are "
            "paired, so it is narrower than those of the figures themselves.",
            tables=[Table(("share of queries", "this, %", "other, %", "difference, points", "95 % interval"), rows)],
        )


@dataclass(frozen=True)
class Against(_OtherWeights):
    """Recall of both directions less that of other weights; the option `of` names these."""

    needs: ClassVar[tuple[Need, ...]] = ("text", "weights")
    title: ClassVar[str] = "Against other weights"

    def figures(self) -> tuple[str, ...]:
        """A difference for every recall."""
        recalls = [names.of_direction(d, names.recall(k)) for d in names.DIRECTIONS for k in RECALL_KS]
        return tuple(names.against(figure) for figure in recalls)

    def measure(self, subject: Subject) -> Measured:
        """Captions are drawn with their image."""
        assert subject.by_weights is not None and subject.pairs is not None
        ours, theirs = subject.ranks, subject.by_weights(self._weights).ranks
        assert ours is not None and theirs is not None, "both compare captions"
        differences, others = {}, {}
        for direction, groups in ((IMAGE_TO_TEXT, None), (TEXT_TO_IMAGE, subject.pairs.text_groups)):
            before, now = _of_direction(theirs, direction), _of_direction(ours, direction)
            for k in RECALL_KS:
                figure = names.of_direction(direction, names.recall(k))
                differences[figure] = paired_bootstrap(before, now, k, groups)
                others[figure] = recall_at_k(before, k)
        return self._measured(differences, others)


@dataclass(frozen=True)
class AgainstKNN(_OtherWeights):
    """k-NN accuracy less that of other weights, in a gallery by those weights; `of` or `model` names these.

    Attributes:
        model: a tower by itself, in place of `of`: {tower: resnet50, weights: IMAGENET1K_V2}.
    """

    model: BareTower | None = None

    needs: ClassVar[tuple[Need, ...]] = ("labels", "weights")
    title: ClassVar[str] = "Neighbours against other weights"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model is not None and self.of != UNTRAINED:
            raise ConfigError(f"of is {self.of} and model is {self.model}: give one of them.")

    @property
    def _weights(self) -> OtherWeights:
        return self.of if self.model is None else self.model

    def figures(self) -> tuple[str, ...]:
        """Two differences."""
        return (names.against(names.KNN), names.against(names.KNN1))

    def expect(self, known: Known) -> None:
        """Raise where there is nothing to compare."""
        expect_others(known, "k-NN")

    def measure(self, subject: Subject) -> Measured:
        """Of the pictures that have a class."""
        assert subject.by_weights is not None
        ours, theirs = right_by_neighbours(subject), right_by_neighbours(subject.by_weights(self._weights))
        differences = {figure: bootstrap(ours[figure].astype(float) - theirs[figure]) for figure in ours}
        return self._measured(differences, {figure: float(np.mean(right)) for figure, right in theirs.items()})


def _of_direction(ranks: Ranks, direction: str) -> np.ndarray:
    return ranks.image_to_text if direction == IMAGE_TO_TEXT else ranks.text_to_image
