"""The evaluations by name: what validation measures. To add one: a file here, a line in the table, a row in docs."""

from collections.abc import Collection

from eval.evaluations.evaluation import Evaluation, Subject
from eval.evaluations.knn import KNN
from eval.evaluations.retrieval import RETRIEVAL
from eval.evaluations.zero_shot import ZERO_SHOT

EVALUATIONS: dict[str, Evaluation] = {
    "retrieval": RETRIEVAL,
    "knn": KNN,
    "zero_shot": ZERO_SHOT,
}


def possible(knows: Collection[str]) -> list[Evaluation]:
    """Those of which everything that they need is known."""
    return [evaluation for evaluation in EVALUATIONS.values() if set(evaluation.needs) <= set(knows)]


def figures_of(subject: Subject) -> dict[str, float]:
    """Every figure that can be measured of a subject, by name."""
    figures: dict[str, float] = {}
    for evaluation in possible(subject.knows):
        measured = evaluation.measure(subject)
        assert set(measured) == set(evaluation.figures), f"{sorted(measured)} are not {sorted(evaluation.figures)}"
        figures |= measured
    return figures
