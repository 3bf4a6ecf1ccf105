"""What of a validation set will be measured while training: by its labels and captions, objective and recipe."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from core.distributed import on_main
from core.errors import ConfigError, DamagedError, DataError, ManifestError
from core.shard_set import ShardSet
from eval.best import check_best_by, figures_of_best
from eval.class_prompts import NamedClasses, named_classes
from eval.evaluations import EVALUATIONS, chosen, expect_all, possible
from eval.evaluations.evaluation import Evaluation
from eval.features import has_pair_loss
from eval.gallery import GallerySource
from eval.known import known_of
from eval.labels import Labels, label_column, labels_of
from trainer.config import TrainConfig
from trainer.data.inputs import batch_columns
from trainer.data.names import TEXT
from trainer.objectives.objective import Objective
from trainer.telemetry import names

_KNN = "knn"
_LACKING: dict[str, str] = {  # of a need: why it may not be known while training
    "text": "needs captions, which this objective does not compare.",
    "labels": "needs class labels in the validation set.",
    "prompts": "needs classes whose names can be compared with pictures: labels, and an objective with captions.",
    "pictures": "needs pictures, and this run reads stored features (data.image_features).",
    "words": "needs a text encoder at hand, and is measured by `shardclip eval` alone.",
    "shelf": "looks samples up by their ids, and is measured by `shardclip eval` alone.",
    "weights": "needs other weights to compare with, and is measured by `shardclip eval` alone.",
}


@dataclass(frozen=True, eq=False)
class ValidationPlan:
    """What will be measured.

    Attributes:
        labels: of the validation set, where k-NN or another evaluation of classes is measured.
        named: of the validation set, where its captions are compared too: class names are then measured like captions.
        gallery: None: the training set has no labels, and the validation set is its own gallery.
        metrics: names of all that will be measured.
        evaluations: what measures them.
        not_named: why class names that are there cannot be measured; "": they can, or there are none.
    """

    labels: Labels | None
    named: NamedClasses | None
    gallery: GallerySource | None
    metrics: tuple[str, ...]
    evaluations: Mapping[str, Evaluation]
    not_named: str = ""


def plan_validation(
    val_set: ShardSet, train_set: ShardSet, objective: Objective, config: TrainConfig
) -> ValidationPlan:
    """Captions where the objective compares them, and classes by their names where the set has any.

    Classes by neighbours where the objective compares no captions, or `best_by` or `evaluations` ask for k-NN.

    Raises:
        ConfigError: there is nothing to measure, or `best_by` or `evaluations` name what will not be measured.
        DataError: a set is too small for an evaluation.
    """
    labels = source = None
    evaluations = chosen(config.evaluations)
    listed: dict[str, str] = {
        need: choice.name for choice in config.evaluations for need in EVALUATIONS[choice.name].needs
    }
    # k-NN's gallery costs up to 10,000 forward passes: beside captions it is followed where it is asked for.
    asks_for_knn = config.best_by in figures_that_need("labels") or any(c.name == _KNN for c in config.evaluations)
    if objective.needs_text and not asks_for_knn:
        del evaluations[_KNN]
    if not objective.needs_text or asks_for_knn or "labels" in listed:
        column = label_column(config.data.columns, train_set.urls)
        labels, train_labels = labels_of(val_set, column), labels_of(train_set, column)
        source = GallerySource.of(train_set, train_labels, val_set) if labels and train_labels else None
        if labels is None:
            asked = f"'{listed['labels']}'" if "labels" in listed else config.best_by
            what = "compares no captions" if not objective.needs_text else f"is followed by {asked}"
            raise ConfigError(
                f"data.val: {val_set.urls[0]} has no class labels, and a run of {config.objective.name} {what}: there "
                "is nothing to measure. Add them (`shardclip column labels`), or set data.val=[]."
            )
    named, not_named = _named_classes(val_set, config) if objective.needs_text else (None, "")
    if named is None and config.best_by in figures_that_need("prompts"):
        raise ConfigError(
            f"best_by is {config.best_by}: for it, {val_set.urls[0]} must have class labels, and objective "
            f"{config.objective.name} compare captions. Add labels (`shardclip column labels`), or leave best_by out."
        )
    pictures = not config.data.image_features
    known = {"text": objective.needs_text, "labels": labels, "prompts": named, "pictures": pictures}
    knows = [need for need, value in known.items() if value]
    _expect_measurable(config, listed, knows)
    evaluations = possible(evaluations, knows)
    expect_all(evaluations, known_of(val_set, labels, source, compares_text=objective.needs_text))
    metrics = [names.val(figure) for evaluation in evaluations.values() for figure in evaluation.figures()]
    loss = [names.VAL_LOSS] if has_pair_loss(objective) else []
    plan = ValidationPlan(labels, named, source, (*loss, *metrics), evaluations, not_named)
    check_best_by(config.best_by, plan.metrics)
    _expect_at_every_validation(config.best_by, plan.metrics, evaluations)
    return plan


def _expect_at_every_validation(best_by: str, metrics: Collection[str], evaluations: Mapping[str, Evaluation]) -> None:
    """Raise ConfigError where the figure that names the best checkpoint is not always there."""
    wanted = set(figures_of_best(best_by, metrics))
    for name, evaluation in evaluations.items():
        if evaluation.every > 1 and wanted & set(map(names.val, evaluation.figures())):
            raise ConfigError(
                f"best_by is {best_by}, and '{name}' is measured at every {evaluation.every} validations alone. Leave "
                "its option every out."
            )


def _expect_measurable(config: TrainConfig, listed: Mapping[str, str], knows: Collection[str]) -> None:
    """Raise ConfigError where an evaluation that the recipe lists cannot be measured while training."""
    for need, name in listed.items():
        if need not in knows:
            raise ConfigError(
                f"evaluations: '{name}' {_LACKING[need]} Take it out of this recipe; after training, `shardclip eval` "
                "says what it can measure."
            )


def figures_that_need(need: str) -> set[str]:
    """What validation calls the figures of evaluations that need this."""
    return {names.val(f) for e in chosen(()).values() if need in e.needs for f in e.figures()}


def _named_classes(val_set: ShardSet, config: TrainConfig) -> tuple[NamedClasses | None, str]:
    """Classes to follow by their names, or why those that are there cannot be.

    Raises:
        ShardclipError: that, where `best_by` asks for a figure of theirs; or class names that captions were made from
            cannot be read, without which recall cannot be counted either.
    """
    _ = val_set.class_captions  # read here, on every rank, so that what is wrong with them ends the run
    try:
        return on_main(lambda: named_classes(val_set, config.data.columns)), ""
    except (DataError, ManifestError, DamagedError) as error:
        if config.best_by in figures_that_need("prompts"):
            raise
        return None, str(error)


def validation_columns(objective: Objective, config: TrainConfig) -> dict[str, str]:
    """Of validation batches: no more than is measured; a text tower that is trained reads captions as text."""
    columns = batch_columns(objective, {}, None, config.data.image_features)
    return {name: column for name, column in columns.items() if name != TEXT or config.build_text() is None}
