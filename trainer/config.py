"""A training recipe: every setting of a run, each part's own dataclass under its own key."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from core.config import Choice
from core.errors import ConfigError
from core.part_options import one_of
from core.parts import build, check
from trainer.data.damage_limit import DamageLimit
from trainer.data.names import OWN_NAMES
from trainer.models.config import ModelConfig
from trainer.models.texts import TEXTS
from trainer.models.texts.text import LiveText
from trainer.objectives import OBJECTIVES
from trainer.objectives.objective import Objective
from trainer.optim.config import OptimConfig
from trainer.pictures.config import AugmentConfig
from trainer.samplers import SAMPLERS
from trainer.telemetry.profiler import ProfileConfig
from trainer.trackers.tracker import TrackingConfig

BEST_BY = "auto"


@dataclass(frozen=True)
class DataConfig:
    """Where samples come from and how they are read."""

    moved_keys: ClassVar[dict[str, str]] = {
        "window_shards": "it is an option of the sampler now: data.sampler: {name: uniform, window_shards: ...}"
    }

    train: tuple[str, ...]  # shard sets: folders or URLs
    val: tuple[str, ...] = ()  # shard sets that validation measures; (): none
    num_workers: int = 4  # decoding processes per rank; 0 decodes in the training process
    prefetch: int = 2  # batches decoded ahead
    # what makes up an epoch: uniform, class_balanced, topical, mix
    sampler: Choice = field(default=Choice("uniform"), metadata=one_of(SAMPLERS, given=["epoch"]))
    text: str | None = None  # a column of caption embeddings; None: those that the shards store, or the only column
    columns: dict[str, str] = field(default_factory=dict)  # name in a batch -> column of the shard sets
    image_features: str | None = None  # a column of the frozen tower's outputs: no picture is read
    cache_dir: Path | None = None  # local disk for shards of remote sets
    max_damaged: int | float = 0  # samples that may be damaged, or their share (0.001); each is replaced and named

    def most_damaged(self, num_samples: int) -> int:
        """How many of a set's samples may be damaged before the run ends."""
        if isinstance(self.max_damaged, int):
            return self.max_damaged
        most = math.ceil(round(self.max_damaged * num_samples, 9))  # a share above 0 allows at least one
        return DamageLimit(most, f"{self.max_damaged} of {num_samples} samples = {most}")


@dataclass(frozen=True)
class TrainConfig:
    """A recipe of `shardclip train`."""

    moved_keys: ClassVar[dict[str, str]] = {"loss": "it is objective now: objective: {name: infonce, ...}"}

    run_dir: Path  # folder of the run: checkpoints, figures, report
    data: DataConfig
    global_batch_size: int  # pairs per step over all processes: the same run on any number of GPUs
    epochs: int = 30  # passes over the training set
    max_steps: int | None = None  # ends the run earlier; the schedule spans what is trained
    accumulate: int = 1  # pieces of a process's batch, run one after the other; all negatives are kept
    seed: int = 0  # of initial weights, order, captions and augmentation
    precision: Literal["auto", "bf16", "fp16", "no"] = "auto"  # auto: bf16 on GPUs that have it, else no
    deterministic: bool = False  # only kernels that round alike every time: a run repeats to the bit, and is slower
    image_size: int | None = None  # pixels that the tower sees; None: as stored
    model: ModelConfig = field(default_factory=ModelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    objective: Choice = field(
        default=Choice("infonce"), metadata=one_of(OBJECTIVES)
    )  # what is pulled together and pushed apart
    optim: OptimConfig = field(default_factory=OptimConfig)
    log_every: int = 50  # steps
    eval_every: int = 0  # steps; 0: after every epoch
    eval_batch_size: int = 256  # images per process
    evaluations: tuple[Choice, ...] = ()  # beside retrieval, k-NN and zero-shot, which follow where the data allow
    best_by: str = BEST_BY  # the metric of the best checkpoint; auto: mean of the six recalls, or k-NN accuracy
    checkpoint_every: int = 0  # steps; 0: after every epoch
    keep_last: int = 3  # checkpoints, beside the best one
    resume: str = "auto"  # auto: go on where run_dir stands, or start; no: a new folder only; or a checkpoint in it
    start_from: str | None = None  # at the first start, weights of: a run folder, a checkpoint, or a state dict's file
    start_parts: Literal["all", "tower", "head"] = "all"  # of start_from
    timeout_s: float = 600.0  # that a collective may wait for all processes
    peer_timeout_s: float = 60.0  # without a sign of life from another process, which is then named; 0: no such watch
    profile: ProfileConfig = field(default_factory=ProfileConfig)  # rank 0, into run_dir/profile
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    @property
    def freezes_random_weights(self) -> bool:
        """Whether parts of the tower stay as chance has drawn them: frozen, though nothing has taught them."""
        return self.model.weights == "none" and self.start_from is None and self.model.freeze != "nothing"

    def __post_init__(self) -> None:
        objective, text = self.build_objective(), self.build_text()
        check(SAMPLERS, self.data.sampler, "data.sampler", given=["epoch"])
        if not self.data.train:
            raise ConfigError("data.train is empty. Name at least one shard set.")
        if self.global_batch_size < 2:
            raise ConfigError(
                f"global_batch_size is {self.global_batch_size}: a contrastive loss needs at least 2 pairs. Raise it."
            )
        for name, least in (
            ("epochs", 1),
            ("accumulate", 1),
            ("log_every", 1),
            ("keep_last", 1),
            ("eval_batch_size", 1),
            ("max_steps", 1),
            ("image_size", 1),
        ):
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}: at least {least} is needed.")
        for name, least in (("num_workers", 0), ("prefetch", 1), ("max_damaged", 0)):
            if getattr(self.data, name) < least:
                raise ConfigError(f"data.{name} is {getattr(self.data, name)}: at least {least} is needed.")
        if isinstance(self.data.max_damaged, float) and self.data.max_damaged >= 1:
            raise ConfigError(
                f"data.max_damaged is {self.data.max_damaged}: give a whole number of samples, or a share below 1 such "
                "as 0.001."
            )
        if self.timeout_s <= 0:
            raise ConfigError(f"timeout_s is {self.timeout_s}: give a number of seconds above 0.")
        if not 0 <= self.peer_timeout_s < self.timeout_s:
            raise ConfigError(
                f"peer_timeout_s is {self.peer_timeout_s}: give seconds below timeout_s ({self.timeout_s}), so "
                "that a lost process is named before a collective gives up."
            )
        for name in OWN_NAMES:
            if name in self.data.columns:
                raise ConfigError(
                    f"data.columns: '{name}' is a name that batches have of their own. Name the column under data.text "
                    "or data.image_features, or choose another name."
                )
        if self.best_by != BEST_BY and not self.data.val:
            raise ConfigError(f"best_by is {self.best_by}, but data.val is empty: nothing is measured. Set data.val.")
        self._expect_columns_of(objective)
        if text is None and objective.needs_text and self.model.embed_dim:
            raise ConfigError(
                f"model.embed_dim is {self.model.embed_dim}, but the head must be as wide as the captions' stored "
                "embeddings. Leave it out, or train a text tower (model.text)."
            )
        if self.data.image_features:
            self._expect_frozen_tower(objective)
        self._expect_one_beginning()
        for name in ("eval_every", "checkpoint_every"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}: a number of steps, or 0 for every epoch.")

    def build_objective(self) -> Objective:
        """The objective with its options.

        Raises:
            ConfigError: no such objective or option, or a value out of its range.
        """
        objective: Objective = build(OBJECTIVES, self.objective, "objective")
        return objective

    def build_text(self) -> LiveText | None:
        """The text tower that is trained, as its options; None where captions' stored embeddings are compared.

        Raises:
            ConfigError: no such text tower or option, or a value out of its range.
        """
        text = build(TEXTS, self.model.text, "model.text")
        return text if isinstance(text, LiveText) else None

    def _expect_one_beginning(self) -> None:
        """Raise where a run would go on in another folder, or begin with two sets of weights."""
        if self.resume not in ("auto", "no"):
            place = Path(self.resume).resolve()
            if self.run_dir.resolve() not in (place, *place.parents):
                raise ConfigError(
                    f"resume is {self.resume}, which is not in run_dir {self.run_dir}: a run goes on in its own. "
                    f"Set run_dir to that one, or begin another run with its weights: start_from={self.resume}."
                )
        if self.start_from is None and self.start_parts != "all":
            raise ConfigError(
                f"start_parts is {self.start_parts}, but nothing is started from. Name a run, a checkpoint or a state "
                "dict: start_from=..."
            )
        if self.start_from is not None and self.model.weights != "none":
            raise ConfigError(
                f"start_from is {self.start_from} and model.weights {self.model.weights}: both give the tower its "
                "weights. Leave one of them out."
            )

    def _expect_columns_of(self, objective: Objective) -> None:
        for name in objective.columns:
            if name not in OWN_NAMES and name not in self.data.columns:
                raise ConfigError(
                    f"objective {self.objective.name} needs '{name}' of every sample. Name the column that holds it, "
                    f"data.columns.{name}=..., as `shardclip column` makes it (a class: `shardclip column labels`)."
                )
        if not objective.needs_text and self.build_text() is not None:
            raise ConfigError(
                f"model.text is {self.model.text.name}, but the objective {self.objective.name} compares no captions. "
                "Leave model.text out, or choose an objective of pictures and captions."
            )

    def _expect_frozen_tower(self, objective: Objective) -> None:
        if objective.views > 1:
            raise ConfigError(
                f"data.image_features holds one picture of each sample, the objective {self.objective.name} compares "
                f"{objective.views} random views. Leave data.image_features out."
            )
        if self.model.freeze != "tower":
            raise ConfigError(
                f"data.image_features holds what a frozen tower made of the pictures, model.freeze is "
                f"{self.model.freeze}. Set model.freeze=tower, or leave data.image_features out."
            )
        if self.model.thaw:
            raise ConfigError(
                "data.image_features holds what a frozen tower made of the pictures, but model.thaw would let it "
                "train. Leave one of them out."
            )
        if self.augment.changes_pictures:
            raise ConfigError(
                "data.image_features holds what the tower made of unchanged pictures, but augment changes them. Set "
                "augment.crop_scale=1,1 augment.flip=0 and the other probabilities to 0, or leave it out."
            )
