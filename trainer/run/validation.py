"""What training asks of validation: the seam to `eval`, which trainer does not know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from accelerate import Accelerator
from torch import Tensor

from core.shard_set import ShardSet
from trainer.config import TrainConfig
from trainer.models.trained import TrainedModel
from trainer.objectives.objective import Objective


@dataclass(frozen=True)
class Validation:
    """What was measured on the validation set; `score` decides which checkpoint is the best."""

    metrics: Mapping[str, float]  # by their names in `trainer.telemetry.names`; the same on every rank
    score: float  # higher is better
    pictures: tuple[tuple[str, Path, str], ...] = ()  # key, file in the run folder, caption; on rank 0


Validate = Callable[[TrainedModel, int, int | None], Validation]


class MakeValidation(Protocol):
    """Gives the function that measures a model at a step; collective, since every rank takes its share.

    The function's last argument says which validation of the run it is, from 1; None: the last one, which measures
    everything.

    Raises:
        ConfigError: there is nothing to measure, or `best_by` names a metric that will not be measured.
    """

    def __call__(
        self, val_set: ShardSet, train_set: ShardSet, normalize: Callable[[Tensor], Tensor], objective: Objective,
        config: TrainConfig, accelerator: Accelerator,
    ) -> Validate: ...  # fmt: skip
