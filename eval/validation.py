"""What training measures as it goes: every evaluation that the data allow, spread over the ranks, and a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from core.distributed import on_main, rank, world_size
from core.errors import ConfigError
from core.shard_set import ShardSet
from eval.best import check_best_by, score
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
from trainer.config import TrainConfig
from trainer.data.inputs import batch_columns
from trainer.data.loader import EvalLoader
from trainer.data.names import TEXT
from trainer.models.trained import TrainedModel
from trainer.objectives.objective import Objective, Tensors
from trainer.run.run import Validation
from trainer.telemetry import names

_NUM_EXAMPLES = 6  # in the picture, the same ones every time
Picture = tuple[str, Path, str]


@dataclass(frozen=True, eq=False)
class ValidationPlan:
    """What will be measured.

    Attributes:
        labels: of the validation set, where k-NN is measured.
        gallery: None: the training set has no labels, and the validation set is its own gallery.
        metrics: names of all that will be measured.
    """

    labels: Labels | None
    gallery: GallerySource | None
    metrics: tuple[str, ...]


def plan_validation(
    val_set: ShardSet, train_set: ShardSet, objective: Objective, config: TrainConfig
) -> ValidationPlan:
    """Captions where the objective compares them; classes where it does not, or `best_by` asks for a figure of them.

    Raises:
        ConfigError: there is nothing to measure, or `best_by` names a metric that will not be measured.
    """
    of_labels = {names.val(f) for e in EVALUATIONS.values() if "labels" in e.needs for f in e.figures}
    labels = source = None
    if not objective.needs_text or config.best_by in of_labels:
        column = label_column(config.data.columns, train_set.urls)
        labels, train_labels = labels_of(val_set, column), labels_of(train_set, column)
        source = GallerySource.of(train_set, train_labels, val_set) if labels and train_labels else None
        if labels is None:
            what = "compares no captions" if not objective.needs_text else f"is followed by {config.best_by}"
            raise ConfigError(
                f"data.val: {val_set.urls[0]} has no class labels, and a run of {config.objective.name} {what}: there "
                "is nothing to measure. Add them (`shardclip column labels`), or set data.val=[]."
            )
    knows = [need for need, known in (("text", objective.needs_text), ("labels", labels)) if known]
    metrics = [names.val(figure) for evaluation in possible(knows) for figure in evaluation.figures]
    plan = ValidationPlan(labels, source, (*([names.VAL_LOSS] if has_pair_loss(objective) else []), *metrics))
    check_best_by(config.best_by, plan.metrics)
    return plan


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

    def report(found: Extracted | Pictures, gallery: Pictures | None, counted: Counted, step: int) -> Validation:
        """On one rank: what is cheap, and what is drawn."""
        pictures = found.pictures if isinstance(found, Extracted) else found
        subject = Subject(
            pictures.images,
            labels=plan.labels.among(classes)[pictures.samples] if plan.labels else None,
            pairs=found.features if isinstance(found, Extracted) else None,
            ranks=counted.ranks,
            gallery=plan.gallery.gallery(gallery, classes) if plan.gallery and gallery else None,
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
            found = extract(*given, val_set, loader, logit_scale=float(scalars.get("scale", 1.0)), **where)
        else:
            found = extract_pictures(*given, val_set, loader, **where)
        gallery = None
        if plan.gallery and gallery_loader:
            gallery = extract_pictures(*given, train_set, gallery_loader, plan.gallery.samples, **where)
        counted = Counted()
        if isinstance(found, Extracted):
            counted = _count(found, val_set, objective, scalars, config.global_batch_size, accelerator.device)
        reported: Validation = on_main(lambda: report(found, gallery, counted, step))
        return reported

    return validate


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
        ids = val_set.image_ids(found.samples)
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
        max_damaged=config.data.max_damaged if source else 0,  # as training itself; every validation sample counts
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
