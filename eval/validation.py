"""What training measures as it goes: loss and recall on a held-out shard set, spread over the ranks, and a picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from torch import Tensor

from core.distributed import on_main, rank, world_size
from core.shard_set import ShardSet
from eval.charts import sheets
from eval.exhibits import Shelf, show_retrieval
from eval.features import Extracted, extract, mean_pair_loss
from eval.metrics import RECALL_KS, Ranks
from eval.plots import save_jpeg
from eval.retrieval import DIRECTIONS, evaluate_retrieval
from trainer.config import TrainConfig
from trainer.data.inputs import batch_columns
from trainer.data.loader import EvalLoader
from trainer.data.names import TEXT
from trainer.models.trained import TrainedModel
from trainer.objectives.objective import Objective, Tensors
from trainer.run.run import Validation

_NUM_CAPTIONS = 6  # in the picture, the same ones every time


def make_validation(
    shard_set: ShardSet,
    normalize: Callable[[Tensor], Tensor],
    objective: Objective,
    config: TrainConfig,
    accelerator: Accelerator,
) -> Callable[[TrainedModel, int], Validation]:
    """The function that the trainer calls with model and step, on all ranks; its figures are the same on all of them.

    Keys: `val/loss`, over batches as large as training's (or the whole set, where that is smaller), and
    `val/image_to_text/recall@1` and so on for every figure of both directions. The score that names the best
    checkpoint is the mean of the six recalls (VSE++ and its successors take their sum).
    """
    image_ids = shard_set.image_ids(np.arange(len(shard_set)))
    device = accelerator.device
    loader = EvalLoader(
        shard_set,
        batch_size=config.eval_batch_size,
        rank=rank(),
        world_size=world_size(),
        columns=_columns(config, objective),
        pictures=not config.data.image_features,
        num_workers=config.data.num_workers,
        pin_memory=device.type == "cuda",
    )

    def measure(extracted: Extracted, scalars: Tensors, step: int) -> Validation:
        result, ranks = evaluate_retrieval(extracted.features)
        loss = mean_pair_loss(extracted, image_ids[extracted.samples], objective, scalars, config.global_batch_size)
        figures = {f"val/{d}/{name}": value for d in DIRECTIONS for name, value in result[d].items()}
        score = float(np.mean([result[d][f"recall@{k}"] for d in DIRECTIONS for k in RECALL_KS]))
        picture = _draw(extracted, ranks[0], shard_set, config.run_dir, step)
        return Validation({"val/loss": loss, **figures}, score, (picture,))

    def validate(model: TrainedModel, step: int) -> Validation:
        scalars = {name: value.detach() for name, value in model.scalars().items()}
        extracted = extract(
            model.encoder,
            normalize,
            shard_set,
            loader,
            logit_scale=float(scalars.get("scale", 1.0)),
            device=device,
            autocast=accelerator.autocast,
        )
        measured: Any = on_main(lambda: measure(extracted, scalars, step))  # the ranks of a node share its cores
        return measured

    return validate


def _columns(config: TrainConfig, objective: Objective) -> dict[str, str]:
    """Of validation batches; captions of a text tower that is trained are read as text."""
    columns = batch_columns(objective, {}, None, config.data.image_features)
    return {name: column for name, column in columns.items() if name != TEXT or config.build_text() is None}


def _draw(extracted: Extracted, ranks: Ranks, shard_set: ShardSet, run_dir: Path, step: int) -> tuple[str, Path, str]:
    folder = run_dir / "pictures"
    examples = show_retrieval(extracted, ranks, Shelf(shard_set, folder, "val"), _NUM_CAPTIONS)
    path = folder / f"val-retrieval-{step:08d}.jpg"
    save_jpeg(sheets({"examples": examples}, folder)["caption_to_images"], path)
    return "val/retrieval", path, f"captions and the images they find at step {step}"
