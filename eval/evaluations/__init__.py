"""The evaluations by name. To add one: a file beside this one, and a line here."""

from collections.abc import Collection, Iterable, Mapping

from core import parts
from core.config import Choice
from core.errors import ConfigError
from eval.evaluations.against import Against, AgainstKNN
from eval.evaluations.calibration import Calibration
from eval.evaluations.eccv_caption import ECCVCaption
from eval.evaluations.evaluation import Evaluation, Known, Measured, Subject
from eval.evaluations.feature_map import FeatureMap
from eval.evaluations.knn import KNN
from eval.evaluations.linear_probe import LinearProbe
from eval.evaluations.modality_gap import ModalityGap
from eval.evaluations.prompt_templates import PromptTemplates
from eval.evaluations.retrieval import Retrieval
from eval.evaluations.robustness import ClassRobustness, Robustness
from eval.evaluations.same_class import SameClass
from eval.evaluations.zero_shot import ZeroShot

EVALUATIONS: dict[str, type[Evaluation]] = {
    "retrieval": Retrieval,
    "knn": KNN,
    "zero_shot": ZeroShot,
    "same_class": SameClass,
    "linear_probe": LinearProbe,
    "robustness": Robustness,
    "class_robustness": ClassRobustness,
    "feature_map": FeatureMap,
    "prompt_templates": PromptTemplates,
    "eccv_caption": ECCVCaption,
    "against": Against,
    "against_knn": AgainstKNN,
    "calibration": Calibration,
    "modality_gap": ModalityGap,
}
ALWAYS = ("retrieval", "knn", "zero_shot")  # wherever the data allow; others where a recipe lists them


def chosen(listed: Iterable[Choice]) -> dict[str, Evaluation]:
    """Those that are always measured and those that a recipe lists, with its options, in the order of the table.

    Raises:
        ConfigError: no such evaluation or option, or one is listed twice.
    """
    options: dict[str, Choice] = {name: Choice(name) for name in ALWAYS}
    seen = set()
    for choice in listed:
        if choice.name in seen:
            raise ConfigError(f"evaluations: '{choice.name}' is listed twice. Keep one, with all its options.")
        seen.add(choice.name)
        parts.check(EVALUATIONS, choice, "evaluations")
        options[choice.name] = choice
    return {name: parts.build(EVALUATIONS, options[name], "evaluations") for name in EVALUATIONS if name in options}


def possible(evaluations: Mapping[str, Evaluation], knows: Collection[str]) -> dict[str, Evaluation]:
    """Those of which everything that they need is known."""
    return {name: evaluation for name, evaluation in evaluations.items() if set(evaluation.needs) <= set(knows)}


def expect_all(evaluations: Mapping[str, Evaluation], known: Known) -> None:
    """Raise what keeps one of them from measuring a set, before anything is computed.

    Those that need captions or labels are asked where the set has them.

    Raises:
        ShardclipError: the first one's sentence.
    """
    lacking = {need for need, value in (("text", known.num_groups), ("labels", known.labels)) if value is None}
    for evaluation in evaluations.values():
        if not lacking & set(evaluation.needs):
            evaluation.expect(known)


def measure_all(evaluations: Mapping[str, Evaluation], subject: Subject) -> dict[str, Measured]:
    """What every evaluation that is possible finds, by name; collective."""
    found = {}
    for name, evaluation in possible(evaluations, subject.knows).items():
        measured = evaluation.measure(subject)
        named = set(evaluation.figures())
        assert set(measured.figures) == named, f"{name}: {sorted(measured.figures)} are not {sorted(named)}"
        assert set(measured.intervals) <= named, f"{name}: {sorted(measured.intervals)} are not among {sorted(named)}"
        found[name] = measured
    return found


def figures_of(measured: Mapping[str, Measured]) -> dict[str, float]:
    """Every figure, by name."""
    figures: dict[str, float] = {}
    for name, found in measured.items():
        assert not figures.keys() & found.figures.keys(), f"{name}: another evaluation has figures of these names"
        figures |= found.figures
    return figures
