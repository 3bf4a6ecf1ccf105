"""The parts of a run that are built and checked before anything is written: to train with, or to find mistakes.

What fails here fails in one sentence.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.class_captions import OWN_CAPTIONS, answers_by
from core.distributed import on_main, rank, world_size
from core.errors import CheckpointError, ConfigError
from core.shard_set import ShardSet
from trainer.checkpoint.folder import Checkpoint, load_checkpoint, load_latest, resolve_checkpoint
from trainer.config import TrainConfig
from trainer.data.feature_column import expect_features_of
from trainer.data.inputs import batch_columns
from trainer.data.loader import TrainLoader
from trainer.data.order_identity import order_difference
from trainer.early import expect_same_captions
from trainer.models.encoder import Encoder
from trainer.models.texts.text import LiveText
from trainer.models.thaw import Freezing, freezing
from trainer.models.trained import TrainedModel
from trainer.objectives.objective import Objective
from trainer.optim.schedule import lr_at
from trainer.run.folder import CHECKPOINTS
from trainer.run.recipe_model import recipe_model
from trainer.run.start_from import Start
from trainer.run.state import expect_optimizer
from trainer.samplers.slices import expect_whole_chunks
from trainer.step.proof import ProofInputs

_PROOF_SAMPLES = 16  # whose captions the proof draws from


@dataclass(frozen=True)
class Data:
    """The shard sets of a run, and its loader."""

    train: ShardSet
    val: ShardSet | None
    loader: TrainLoader
    size: int  # of the pictures that the tower sees, pixels
    total_steps: int
    freezing: Freezing
    answers_by: str  # of the validation set, where captions are compared


def open_data(
    config: TrainConfig, objective: Objective, text: LiveText | None, device: torch.device, resources: ExitStack
) -> Data:
    """The sets, opened and checked against the recipe, and the loader."""
    train_set = ShardSet.open(config.data.train, config.data.cache_dir, config.data.text)
    if text is not None:
        text.check_tokens(train_set.column(text.tokens).head)
    val_set = _open_validation_set(config, train_set, compares_stored=objective.needs_text and text is None)
    loader = _loader(config, objective, text, train_set, device)
    resources.callback(loader.close)
    total_steps = min(config.epochs * loader.steps_per_epoch, 2**62 if config.max_steps is None else config.max_steps)
    lr_at(0, total_steps, config.optim)  # a warm-up longer than the run ends here
    frozen = freezing(config.model.freeze, config.model.thaw, total_steps)
    expect_whole_chunks(config.global_batch_size, world_size(), config.accumulate)
    size = config.image_size or train_set.image.size
    answers = answers_by(val_set) if val_set is not None and objective.needs_text else OWN_CAPTIONS
    return Data(train_set, val_set, loader, size, total_steps, frozen, answers)


def _open_validation_set(config: TrainConfig, train_set: ShardSet, compares_stored: bool) -> ShardSet | None:
    if not config.data.val:
        return None
    val_set = ShardSet.open(config.data.val, config.data.cache_dir, config.data.text)
    if compares_stored:
        expect_same_captions(config, train_set, val_set)
    return val_set


def _loader(
    config: TrainConfig, objective: Objective, text: LiveText | None, train_set: ShardSet, device: torch.device
) -> TrainLoader:
    tokens = text.tokens if text is not None else None
    return TrainLoader(
        train_set,
        global_batch_size=config.global_batch_size,
        rank=rank(),
        world_size=world_size(),
        seed=config.seed,
        num_workers=config.data.num_workers,
        prefetch=config.data.prefetch,
        sampler=config.data.sampler,
        columns=batch_columns(objective, config.data.columns, tokens, config.data.image_features),
        all_captions=objective.all_captions,
        pictures=not config.data.image_features,
        pin_memory=device.type == "cuda",
        max_damaged=config.data.most_damaged(len(train_set)),
    )


def build_model(config: TrainConfig, data: Data) -> tuple[TrainedModel, Start | None]:
    """The model as it begins, checked against the stored outputs of its tower where those are read."""
    model, start = recipe_model(config, data.train)
    for shard_set in (data.train, data.val):
        if shard_set is not None and config.data.image_features:
            expect_features_of(model.encoder, config, shard_set)
    return model, start


def expect_possible_sync(config: TrainConfig, device: torch.device, processes: int) -> None:
    """Raise ConfigError where batch statistics are to be shared and cannot."""
    if config.model.sync_batchnorm and processes > 1 and device.type != "cuda":
        raise ConfigError("model.sync_batchnorm needs GPUs. Set model.sync_batchnorm=false.")


def shape_of_inputs(config: TrainConfig, encoder: Encoder, size: int) -> tuple[int, ...]:
    """Of one input of the image encoder."""
    return (encoder.image_encoder.tower_dim,) if config.data.image_features else (3, size, size)


def proof_inputs(objective: Objective, text: LiveText | None, data: Data, shape: tuple[int, ...]) -> ProofInputs:
    captions = 2 if objective.all_captions else 0
    if text is None:
        return ProofInputs(shape, data.train.embed_dim if objective.needs_text else None, None, captions)
    column = data.train.column(text.tokens)
    some = [column.of_captions(sample) for sample in range(min(_PROOF_SAMPLES, len(data.train)))]
    return ProofInputs(shape, None, torch.from_numpy(np.concatenate(some)), captions)


def identity_of(config: TrainConfig, encoder: Encoder, data: Data) -> dict[str, Any]:
    """What the weights are: a checkpoint with another identity is of another model."""
    mean, std = encoder.normalization
    compares_stored = config.build_objective().needs_text and config.build_text() is None
    spec = data.train.text_encoder if compares_stored else None
    return {
        "model": encoder.describe(),
        "objective": config.objective.name,
        "text_encoder": asdict(spec) if spec else None,
        "image": {"size": data.size, "fit": data.train.image.fit, "mean": list(mean), "std": list(std)},
    }


def find_checkpoint(
    config: TrainConfig, identity: Mapping[str, Any], order: Mapping[str, Any], train_set: ShardSet
) -> Checkpoint | None:
    """Where the run goes on, if it does; a recipe that cannot go on is refused before the folder is touched."""
    if config.resume == "no":
        return None
    if config.resume == "auto":
        found = on_main(lambda: _path_of(load_latest(config.run_dir / CHECKPOINTS, identity)))
    else:
        found = on_main(lambda: resolve_checkpoint(Path(config.resume)))
    if found is None:
        return None
    checkpoint = load_checkpoint(found, identity)
    expect_optimizer(checkpoint, config.optim.optimizer.name)
    if difference := order_difference(checkpoint.state.get("order", {}), order, train_set):
        raise CheckpointError(
            f"{found}: {difference}: the samples would come in another order. Put it back, or start in another run_dir."
        )
    return checkpoint


def _path_of(checkpoint: Checkpoint | None) -> Path | None:
    return checkpoint.path if checkpoint else None
