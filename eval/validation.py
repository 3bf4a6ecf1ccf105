"""What training measures as it goes: every evaluation that the data allow, spread over the ranks, and a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from core.class_captions import answer_ids
from core.distributed import on_main, rank, world_size
from core.errors import WeightsError
from core.shard_set import ShardSet
from eval.best import score
from eval.class_prompts import ClassPrompts, class_prompts
from eval.evaluations import figures_of, measure_all
from eval.evaluations.evaluation import ChangePictures, Evaluation, Measured, Subject
from eval.features import Extracted, Pictures, extract, extract_pictures, has_pair_loss, mean_pair_loss
from eval.gallery import GallerySource, joint_classes
from eval.metrics import Ranks
from eval.ranks import retrieval_ranks
from eval.report.charts import sheets
from eval.report.drawing.style import LIGHT, save_jpeg
from eval.report.exhibits import Shelf, show_neighbours, show_retrieval
from eval.report.measured import chart_key, files_of, keep_files, part_of
from eval.report.page import PICTURES
from eval.right_answers import with_class_answers
from eval.topics import topics_of
from eval.validation_plan import ValidationPlan, figures_that_need, plan_validation, validation_columns
from trainer.config import TrainConfig
from trainer.data.loader import EvalLoader
from trainer.data.names import TEXT
from trainer.models.trained import TrainedModel
from trainer.objectives.objective import Objective
from trainer.run.run import console
from trainer.run.validation import Validation
from trainer.telemetry import names

_NUM_EXAMPLES = 6  # in the picture, the same ones every time
Picture = tuple[str, Path, str]


def make_validation(
    val_set: ShardSet,
    train_set: ShardSet,
    normalize: Callable[[Tensor], Tensor],
    objective: Objective,
    config: TrainConfig,
    accelerator: Accelerator,
) -> Validating:
    """What the trainer calls with model and step, on all ranks; its figures are the same on all of them.

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
    prompts = on_main(lambda: _class_prompts(val_set, train_set, plan, config, accelerator.device))
    given = (plan, prompts, val_set, train_set, loader, gallery_loader)
    return Validating(*given, normalize, objective, config, accelerator)


@dataclass(frozen=True, eq=False)
class Validating:
    """A validation set, ready to be measured at any step."""

    plan: ValidationPlan
    prompts: ClassPrompts | None
    val_set: ShardSet
    train_set: ShardSet
    loader: EvalLoader
    gallery_loader: EvalLoader | None
    normalize: Callable[[Tensor], Tensor]
    objective: Objective
    config: TrainConfig
    accelerator: Accelerator

    def __call__(self, model: TrainedModel, step: int, nth: int | None = None) -> Validation:
        """Measure what is due at the `nth` validation from 1; None: everything."""
        found = self._extract(model)
        due = {name: e for name, e in self.plan.evaluations.items() if nth is None or nth % e.every == 0}
        looks_there = any("labels" in evaluation.needs for evaluation in due.values())
        gallery = self._extract_gallery(model) if self.gallery_loader and looks_there else None
        counted = self._count(model, found) if isinstance(found, Extracted) else Counted()
        subject = self._subject(model, found, gallery, counted.ranks)
        measured = measure_all(due, subject)
        reported: Validation = on_main(lambda: self._report(subject, found, measured, counted.loss, step))
        return reported

    @cached_property
    def _classes(self) -> tuple[str, ...]:
        return joint_classes(self.plan.labels, self.plan.gallery) if self.plan.labels else ()

    @property
    def _where(self) -> dict[str, Any]:
        return {"device": self.accelerator.device, "autocast": self.accelerator.autocast}

    def _extract(self, model: TrainedModel) -> Extracted | Pictures:
        given = (model.encoder, self.normalize, self.val_set, self.loader)
        if not self.objective.needs_text:
            return extract_pictures(*given, **self._where)
        scalars = {name: float(value.detach()) for name, value in model.scalars().items()}
        extracted = extract(*given, logit_scale=scalars.get("scale", 1.0), **self._where)
        return with_class_answers(extracted, self.val_set, model.encoder.text_encoder is not None)

    def _extract_gallery(self, model: TrainedModel) -> Pictures:
        assert self.plan.gallery is not None and self.gallery_loader is not None
        given = (model.encoder, self.normalize, self.train_set, self.gallery_loader, self.plan.gallery.samples)
        return extract_pictures(*given, **self._where)

    def _count(self, model: TrainedModel, found: Extracted) -> Counted:
        device = self.accelerator.device
        ranks, loss = retrieval_ranks(found.features, device), None
        if has_pair_loss(self.objective):
            ids = answer_ids(self.val_set, found.samples)
            scalars = {name: value.detach() for name, value in model.scalars().items()}
            loss = mean_pair_loss(found, ids, self.objective, scalars, self.config.global_batch_size, device)
        return Counted(ranks, loss)

    def _subject(
        self, model: TrainedModel, found: Extracted | Pictures, gallery: Pictures | None, ranks: Ranks | None
    ) -> Subject:
        pictures, texts = (found.pictures, found) if isinstance(found, Extracted) else (found, None)
        plan, prompts, device = self.plan, self.prompts, self.accelerator.device

        def encode(change: ChangePictures) -> np.ndarray:
            given = (model.encoder, self.normalize, self.val_set, self.loader)
            return extract_pictures(*given, change=change, **self._where).images

        return Subject(
            pictures.images,
            samples=pictures.samples,
            labels=plan.labels.among(self._classes)[pictures.samples] if plan.labels else None,
            classes=self._classes,
            pairs=texts.features if texts else None,
            captions=texts.captions if texts else None,
            ranks=ranks,
            logit_scale=texts.logit_scale if texts else 1.0,
            gallery=plan.gallery.gallery(gallery, self._classes) if plan.gallery and gallery else None,
            prompts=on_main(lambda: prompts.of(pictures.samples, model.encoder, device)) if prompts else None,
            encode=None if self.config.data.image_features else encode,
            topics=lambda: topics_of(self.val_set),
            device=str(device),
            say=console.print,
        )

    def _report(
        self,
        subject: Subject,
        found: Extracted | Pictures,
        measured: Mapping[str, Measured],
        loss: float | None,
        step: int,
    ) -> Validation:
        """On one rank: what is written and drawn."""
        run_dir, best_by = self.config.run_dir, self.config.best_by
        metrics = {names.val(figure): value for figure, value in figures_of(measured).items()}
        if loss is not None:
            metrics[names.VAL_LOSS] = loss
        if isinstance(found, Extracted):
            assert subject.ranks is not None
            picture = _draw(found, subject.ranks, self.val_set, run_dir, step)
        else:
            shelves = [Shelf(s, run_dir / PICTURES, n) for s, n in ((self.val_set, "val"), (self.train_set, "train"))]
            examples = show_neighbours(subject, found.samples, self._classes, *shelves, count=_NUM_EXAMPLES)
            picture = _draw_neighbours(examples, run_dir, step)
        keep_files(files_of(measured), run_dir, step)
        charts = _draw_charts(self.plan.evaluations, measured, run_dir, step)
        return Validation(metrics, score(best_by, metrics), (picture, *charts))


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
        if config.best_by in figures_that_need("prompts"):
            raise
        console.print(f"zero-shot accuracy is not followed: {error}", markup=False)
        return None


@dataclass(frozen=True, eq=False)
class Counted:
    """What all ranks work out together; None: the data do not allow it."""

    ranks: Ranks | None = None
    loss: float | None = None


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


def _draw_charts(
    evaluations: Mapping[str, Evaluation], measured: Mapping[str, Measured], run_dir: Path, step: int
) -> list[Picture]:
    """Of what brings charts of its own."""
    folder = run_dir / PICTURES
    pictures = []
    for name, found in measured.items():
        for chart, figure in evaluations[name].charts(part_of(found), folder, LIGHT).items():
            key = chart_key(name, chart)
            path = folder / f"val-{key}-{step:08d}.jpg"
            save_jpeg(figure, path)
            caption = f"{evaluations[name].title}: {chart.replace('_', ' ')} at step {step}"
            pictures.append((names.val(key), path, caption))
    return pictures
