"""Where a run stands: one value, saved into a checkpoint and put back from it here and nowhere else.

A checkpoint has a part for each holder of tensors (encoder, objective, ema, optimizer; the loop does not know more of
them) and this value as JSON. Nothing in it depends on the number of processes but the random generators.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.class_captions import OWN_CAPTIONS
from core.config import Choice, convert
from core.errors import CheckpointError
from trainer.checkpoint.folder import EMA, ENCODER, OBJECTIVE, Checkpoint, save_checkpoint
from trainer.checkpoint.tensor_tree import map_tensors
from trainer.models.trained import TrainedModel
from trainer.optim.ema import AveragedModel

_REMEDY = "Start in another run_dir; start_from= takes over its weights."


@dataclass(frozen=True)
class RunState:
    """Everything of a run but its tensors; what is counted on the device is a scalar there until it is saved.

    Attributes:
        order: what the order of the samples is computed from.
        ledger: what the coverage of the current epoch has counted.
        rng: the random generators of every rank.
        answers_by: what the validation set's right answers went by when the best score was measured.
        scaler: of fp16's loss scale.
        num_averaged: updates of the running average.
        summary: the figures that were measured last.
    """

    step: int
    samples_seen: int
    world_size: int
    order: Mapping[str, Any]
    ledger: Any
    rng: list[Any]
    run_id: str
    best_score: float | None = None
    answers_by: str = OWN_CAPTIONS
    seconds: float = 0.0
    scaler: Mapping[str, Any] | None = None
    num_averaged: int | Tensor = 0
    summary: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Holders:
    """The objects whose tensors a run goes on from."""

    model: TrainedModel
    objective_state: dict[str, Tensor]
    averaged: AveragedModel[TrainedModel] | None
    optimizer: Any


def contents(holders: Holders, state: RunState) -> dict[str, Any]:
    """What a checkpoint is made of: the very tensors that the run goes on with, to be copied before its next step."""
    learned = {name: tensor.detach() for name, tensor in holders.model.learned.items()}
    assert not learned.keys() & holders.objective_state.keys(), "a learned scalar and a state of one name"
    parts: dict[str, Mapping[str, Tensor]] = {
        ENCODER: holders.model.encoder.state_dict(),
        OBJECTIVE: {**learned, **holders.objective_state},
    }
    if holders.averaged is not None:
        parts[EMA] = holders.averaged.module.state_dict()
    values = {f.name: getattr(state, f.name) for f in fields(RunState)}
    return {"parts": parts, "optimizer_state": holders.optimizer.state_dict(), "state": values}


def save(
    copied: Mapping[str, Any], folder: Path, *, identity: Mapping[str, Any], keep_last: int, is_best: bool
) -> None:
    """Publish a checkpoint of what `contents` gave, with its tensors on the host; one process calls it."""
    save_checkpoint(
        folder,
        parts=copied["parts"],
        optimizer_state=copied["optimizer_state"],
        state=map_tensors(copied["state"], Tensor.item),
        identity=identity,
        keep_last=keep_last,
        is_best=is_best,
    )


def scaler_state(scaler: torch.amp.GradScaler) -> dict[str, Any]:
    """Its `state_dict()`, with what lies on the device left there: to read it would wait for the device."""
    kept = {"scale": scaler._get_scale_async(), "_growth_tracker": scaler._growth_tracker}
    steady = {
        "growth_factor": scaler.get_growth_factor(),
        "backoff_factor": scaler.get_backoff_factor(),
        "growth_interval": scaler.get_growth_interval(),
    }
    return {**steady, **kept}


def state_of(checkpoint: Checkpoint) -> RunState:
    """The state in a checkpoint.

    Raises:
        CheckpointError: another version wrote it.
    """
    known = {f.name for f in fields(RunState)}
    try:
        return RunState(**{name: value for name, value in checkpoint.state.items() if name in known})
    except TypeError:
        needed = ("step", "samples_seen", "world_size", "order", "ledger", "rng", "run_id")
        missing = next(name for name in needed if name not in checkpoint.state)
        raise CheckpointError(
            f"{checkpoint.path}: its state has no '{missing}', so it was written by another version and cannot be "
            f"resumed. {_REMEDY}"
        ) from None


def expect_optimizer(checkpoint: Checkpoint, name: str) -> None:
    """Raise where another optimizer trained it: one's moments mean nothing to another; its options may change.

    Raises:
        CheckpointError: says which optimizer it was.
    """
    optim = checkpoint.identity.get("config", {}).get("optim", {})
    was = convert(optim.get("optimizer", "adamw"), Choice, f"{checkpoint.path}: optim.optimizer").name
    if was != name:
        raise CheckpointError(
            f"{checkpoint.path}: was trained with the optimizer {was}, this recipe's is {name}. Put optim.optimizer "
            f"back. {_REMEDY}"
        )


def restore(holders: Holders, checkpoint: Checkpoint, state: RunState) -> None:
    """Put every tensor back.

    Raises:
        CheckpointError: the checkpoint holds other parts or tensors than the recipe makes.
    """
    objective = dict(checkpoint.parts.get(OBJECTIVE, {}))
    learned = {name: objective.pop(name, None) for name in holders.model.learned}
    expected = {**learned, **{name: objective.get(name) for name in holders.objective_state}}
    if absent := [name for name, tensor in expected.items() if tensor is None] or [*objective.keys() - expected.keys()]:
        raise CheckpointError(f"{checkpoint.path}: '{absent[0]}' is of another objective. {_REMEDY}")
    for name, tensor in holders.objective_state.items():
        if objective[name].shape != tensor.shape:
            shapes = f"{tuple(objective[name].shape)}, this recipe's is {tuple(tensor.shape)}"
            raise CheckpointError(
                f"{checkpoint.path}: the objective's '{name}' is {shapes}. Put objective back. {_REMEDY}"
            )
    holders.model.encoder.load_state_dict(checkpoint.parts[ENCODER])
    for name, parameter in holders.model.learned.items():
        parameter.data.copy_(learned[name])
    for name, tensor in holders.objective_state.items():
        holders.objective_state[name] = objective[name].to(tensor.device)
    if holders.averaged is not None and EMA in checkpoint.parts:  # else the average begins with the next step
        holders.averaged.load(checkpoint.parts[EMA], int(state.num_averaged))
    _load_optimizer(holders.optimizer, checkpoint)


def _load_optimizer(optimizer: Any, checkpoint: Checkpoint) -> None:
    """Moments from the checkpoint, settings from the recipe: a changed weight_decay or learning rate counts."""
    now, was = optimizer.param_groups, checkpoint.optimizer_state["param_groups"]
    if [(g["name"], len(g["params"])) for g in now] != [(g["name"], len(g["params"])) for g in was]:
        raise CheckpointError(
            f"{checkpoint.path}: was trained with other parameters than this recipe trains. Put model.freeze, "
            f"model.thaw and optim back. {_REMEDY}"
        )
    settings = [{name: value for name, value in group.items() if name != "params"} for group in now]
    # Before loading: where a step count lies depends on whether its group is fused.
    groups = [{**group, **ours} for group, ours in zip(was, settings, strict=True)]
    optimizer.load_state_dict({**checkpoint.optimizer_state, "param_groups": groups})
