"""What training measures as it goes: every evaluation that the data allow, spread over the ranks, and a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from core.class_captions import answer_ids
from core.distributed import on_main, rank, world_size
from core.errors import ConfigError, DamagedError, DataError, ManifestError, WeightsError
from core.shard_set import ShardSet
from eval.best import check_best_by, score
from eval.class_prompts import ClassPrompts, NamedClasses, class_prompts, named_classes
from eval.evaluations import EVALUATIONS, figures_of, possible
from eval.evaluations.evaluation import Subject
from eval.features import Extracted, Pictures, extract, extract_pictures, has_pair_loss, mean_pair_loss
from eval.gallery import GallerySource, joint_classes
from eval.labels import Labels, label_column, labels_of
from eval.metrics import Ranks
from eval.ranks import retrieval_ranks
from eval.report.charts import sheets
from eval.report.drawing import save_jpeg
from eval.report.exhibits import Shelf, show_neighbours, show_retrieval
from eval.report.page import PICTURES
from eval.right_answers import with_class_answers
from trainer.config import TrainConfig
from trainer.data.inputs import batch_columns
from trainer.data.loader import EvalLoader
from trainer.data.names import TEXT
from trainer.models.trained import TrainedModel
from trainer.objectives.objective import Objective, Tensors
from trainer.run.run import Validation, console
from trainer.telemetry import names

_NUM_EXAMPLES = 6  # in the picture, the same ones every time
Picture = tuple[str, Path, str]


@dataclass(frozen=True, eq=False)
class ValidationPlan:
    """What will be measured.

    Attributes:
        labels: of the validation set, where k-NN is measured.
        named: of the validation set, where its captions are compared too: class names are then measured like captions.
        gallery: None: the training set has no labels, and the validation set is its own gallery.
        metrics: names of all that will be measured.
        not_named: why class names that are there cannot be measured; "": they can, or there are none.
    """

    labels: Labels | None
    named: NamedClasses | None
    gallery: GallerySource | None
    metrics: tuple[str, ...]
    not_named: str = ""


def plan_validation(
    val_set: ShardSet, train_set: ShardSet, objective: Objective, config: TrainConfig
) -> ValidationPlan:
    """Captions where the objective compares them, and classes by their names where the set has any.

    Classes by neighbours where the objective compares no captions, or `best_by` asks for a figure of these.

    Raises:
        ConfigError: there is nothing to measure, or `best_by` names a metric that will not be measured.
    """
    labels = source = None
    if not objective.needs_text or config.best_by in _figures_of("labels"):
        column = label_column(config.data.columns, train_set.urls)
        labels, train_labels = labels_of(val_set, column), labels_of(train_set, column)
        source = GallerySource.of(train_set, train_labels, val_set) if labels and train_labels else None
        if labels is None:
            what = "compares no captions" if not objective.needs_text else f"is followed by {config.best_by}"
            raise ConfigError(
                f"data.val: {val_set.urls[0]} has no class labels, and a run of {config.objective.name} {what}: there "
                "is nothing to measure. Add them (`shardclip column labels`), or set data.val=[]."
            )
    named, not_named = _named_classes(val_set, config) if objective.needs_text else (None, "")
    if named is None and config.best_by in _figures_of("prompts"):
        raise ConfigError(
            f"best_by is {config.best_by}: for it, {val_set.urls[0]} must have class labels, and objective "
            f"{config.objective.name} compare captions. Add labels (`shardclip column labels`), or leave best_by out."
        )
    knows = [n for n, known in (("text", objective.needs_text), ("labels", labels), ("prompts", named)) if known]
    metrics = [names.val(figure) for evaluation in possible(knows) for figure in evaluation.figures]
    loss = [names.VAL_LOSS] if has_pair_loss(objective) else []
    plan = ValidationPlan(labels, named, source, (*loss, *metrics), not_named)
    check_best_by(config.best_by, plan.metrics)
    return plan


def _figures_of(need: str) -> set[str]:
    """What validation calls the figures of evaluations that need this."""
    return {names.val(figure) for e in EVALUATIONS.values() if need in e.needs for figure in e.figures}


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
        if config.best_by in _figures_of("prompts"):
            raise
        return None, str(error)


def validation_columns(objective: Objective, config: TrainConfig) -> dict[str, str]:
    """Of validation batches: no more than is measured; a text tower that is trained reads captions as text."""
    columns = batch_columns(objective, {}, None, config.data.image_features)
    return {name: column for name, column in columns.items() if name != TEXT or config.build_text() is None}


def make_validation(
    val_set: ShardSet,
    train_set: ShardSet,
    normalize: Callable[[Tensor], Tensor],
    objective: Objective,
    config: TrainConfig,
    accelerator: Accelerator,
) -> Callable[[TrainedModel, int], Validation]:
    """The function that the trainer calls with model and step, on all ranks; its figures are the same on all of them.

    Keys: `val/` and every figure of the evaluations in `eval.evaluations` that the data allow; and, where the objective
    compares captions, `val/loss` over batches as large as training's (or the whole set, where that is smaller).
    """
    plan = plan_validation(val_set, train_set, objective, config)
    columns = validation_columns(objective, config)
    loader = _loader(val_set, columns, config, accelerator)
    gallery_loader = None
    if plan.gallery:
        pictures_alone = {name: column for name, column in columns.items() if name != TEXT}
        gallery_loader = _loader(train_set, pictures_alone, config, accelerator, plan.gallery)
    classes = joint_classes(plan.labels, plan.gallery) if plan.labels else ()
    prompts = on_main(lambda: _class_prompts(val_set, train_set, plan, config, accelerator.device))

    def report(
        model: TrainedModel, found: Extracted | Pictures, gallery: Pictures | None, counted: Counted, step: int
    ) -> Validation:
        """On one rank: what is cheap, and what is drawn."""
        pictures = found.pictures if isinstance(found, Extracted) else found
        subject = Subject(
            pictures.images,
            labels=plan.labels.among(classes)[pictures.samples] if plan.labels else None,
            pairs=found.features if isinstance(found, Extracted) else None,
            ranks=counted.ranks,
            gallery=plan.gallery.gallery(gallery, classes) if plan.gallery and gallery else None,
            prompts=prompts.of(pictures.samples, model.encoder, accelerator.device) if prompts else None,
        )
        metrics = {names.val(figure): value for figure, value in figures_of(subject).items()}
        if counted.loss is not None:
            metrics[names.VAL_LOSS] = counted.loss
        if isinstance(found, Extracted):
            assert counted.ranks is not None
            picture = _draw(found, counted.ranks, val_set, config.run_dir, step)
        else:
            shelves = [
                Shelf(s, config.run_dir / PICTURES, name) for s, name in ((val_set, "val"), (train_set, "train"))
            ]
            examples = show_neighbours(subject, found.samples, classes, *shelves, count=_NUM_EXAMPLES)
            picture = _draw_neighbours(examples, config.run_dir, step)
        return Validation(metrics, score(config.best_by, metrics), (picture,))

    def validate(model: TrainedModel, step: int) -> Validation:
        scalars = {name: value.detach() for name, value in model.scalars().items()}
        where: dict[str, Any] = {"device": accelerator.device, "autocast": accelerator.autocast}
        given = (model.encoder, normalize)
        found: Extracted | Pictures
        if objective.needs_text:
            extracted = extract(*given, val_set, loader, logit_scale=float(scalars.get("scale", 1.0)), **where)
            found = with_class_answers(extracted, val_set, model.encoder.text_encoder is not None)
        else:
            found = extract_pictures(*given, val_set, loader, **where)
        gallery = None
        if plan.gallery and gallery_loader:
            gallery = extract_pictures(*given, train_set, gallery_loader, plan.gallery.samples, **where)
        counted = Counted()
        if isinstance(found, Extracted):
            counted = _count(found, val_set, objective, scalars, config.global_batch_size, accelerator.device)
        reported: Validation = on_main(lambda: report(model, found, gallery, counted, step))
        return reported

    return validate


def _class_prompts(
    val_set: ShardSet, train_set: ShardSet, plan: ValidationPlan, config: TrainConfig, device: torch.device
) -> ClassPrompts | None:
    """None where there are no classes to measure by their names, and where a frozen encoder is not here.

    Raises:
        WeightsError: so it is, and `best_by` asks for a figure of classes.
    """
    if plan.not_named:
        console.print(f"zero-shot accuracy is not followed: {plan.not_named}", markup=False)
    if plan.named is None:
        return None
    if val_set.class_captions:
        console.print(
            f"{' + '.join(val_set.urls)}: captions are made from class names, so recall counts every sample of a class "
            "as right: it cannot be compared with that of captioned sets.",
            markup=False,
        )
    try:
        return class_prompts(val_set, train_set, plan.named, config.build_text() is not None, device)
    except WeightsError as error:
        if config.best_by in _figures_of("prompts"):
            raise
        console.print(f"zero-shot accuracy is not followed: {error}", markup=False)
        return None


@dataclass(frozen=True, eq=False)
class Counted:
    """What all ranks work out together; None: the data do not allow it."""

    ranks: Ranks | None = None
    loss: float | None = None


def _count(
    found: Extracted,
    val_set: ShardSet,
    objective: Objective,
    scalars: Tensors,
    batch_size: int,
    device: torch.device,
) -> Counted:
    ranks, loss = retrieval_ranks(found.features, device), None
    if has_pair_loss(objective):
        ids = answer_ids(val_set, found.samples)
        loss = mean_pair_loss(found, ids, objective, scalars, batch_size, device)
    return Counted(ranks, loss)


def _loader(
    shard_set: ShardSet,
    columns: dict[str, str],
    config: TrainConfig,
    accelerator: Accelerator,
    source: GallerySource | None = None,
) -> EvalLoader:
    return EvalLoader(
        shard_set,
        batch_size=config.eval_batch_size,
        samples=source.samples if source else None,
        rank=rank(),
        world_size=world_size(),
        columns=columns,
        pictures=not config.data.image_features,
        num_workers=config.data.num_workers,
        pin_memory=accelerator.device.type == "cuda",
        # As training itself; of the validation set every sample counts.
        max_damaged=config.data.most_damaged(len(shard_set)) if source else None,
    )


def _draw(extracted: Extracted, ranks: Ranks, shard_set: ShardSet, run_dir: Path, step: int) -> Picture:
    folder = run_dir / PICTURES
    examples = show_retrieval(extracted, ranks, Shelf(shard_set, folder, "val"), _NUM_EXAMPLES)
    path = folder / f"val-retrieval-{step:08d}.jpg"
    save_jpeg(sheets({"examples": examples}, folder)["caption_to_images"], path)
    return names.VAL_RETRIEVAL, path, f"captions and the images they find at step {step}"


def _draw_neighbours(examples: Sequence[Mapping[str, Any]], run_dir: Path, step: int) -> Picture:
    folder = run_dir / PICTURES
    path = folder / f"val-neighbours-{step:08d}.jpg"
    save_jpeg(sheets({"knn": {"neighbours": examples}}, folder)["neighbours"], path)
    return names.VAL_NEIGHBOURS, path, f"pictures and their nearest neighbours at step {step}"
