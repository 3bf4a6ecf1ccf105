"""What `shardclip doctor` looks at once torch is loaded: each check names what it found, with its repair."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import psutil
import torch

from core.columns import column_names, column_url, load_head
from core.cores import available_cores
from core.errors import ShardclipError
from core.precision import choose_precision, computes_bf16
from core.shard_set import ShardSet
from core.spoken import counted
from eval.best import best_is
from eval.validation_plan import plan_validation, validation_columns
from launch.examine import Finding, Level
from trainer.config import TrainConfig
from trainer.data.buffers import buffer_bytes
from trainer.data.columns import BatchColumns, most_captions
from trainer.data.feature_column import default_column_name, expect_features_of
from trainer.data.inputs import batch_columns
from trainer.data.names import TEXT, TOKENS
from trainer.data.order_identity import order_identity
from trainer.data.stream import max_in_flight
from trainer.models.thaw import in_order
from trainer.models.trained import TrainedModel
from trainer.optim.build import build_optimizer
from trainer.run.parts import expect_possible_sync, find_checkpoint, identity_of, open_data
from trainer.run.recipe_model import recipe_model
from trainer.run.start_from import Start
from trainer.samplers.order import sampled
from trainer.samplers.slices import steps_per_epoch
from trainer.trackers.opening import check_trackers
from trainer.trackers.wandb_tracker import choose_mode

GIB = 2**30
_WIDEST_CROP, _LEAST_JITTER = 0.5, 0.3  # weaker ones leave two views too much alike (Chen et al. 2020, fig. 5)


@dataclass(frozen=True)
class Examined:
    """A recipe, the processes of all machines, and its model, which is built once for all checks."""

    config: TrainConfig
    ranks: int

    def model(self) -> tuple[TrainedModel, Start | None]:
        """What `recipe_model` gives, or raises; every check that asks gets the same."""
        if isinstance(self._built, ShardclipError):
            raise self._built
        return self._built

    @cached_property
    def _built(self) -> tuple[TrainedModel, Start | None] | ShardclipError:
        try:
            return recipe_model(self.config, _open_training_set(self.config))
        except ShardclipError as error:  # weights that cannot be had are not asked for again
            return error


Check = Callable[[Examined], Iterator[Finding]]


def check_shards(examined: Examined) -> Iterator[Finding]:
    """Manifests, indexes, the same encoder on both sides, batch against set, whole steps on every rank."""
    config, ranks = examined.config, examined.ranks
    train = _open_training_set(config)
    steps = steps_per_epoch(len(train), config.global_batch_size, ranks)
    dropped = len(train) - steps * config.global_batch_size
    yield Finding(
        "ok",
        f"{counted(len(train), 'training sample')}, {counted(steps, 'step')} an epoch, {dropped:,} left over in each",
    )
    compares_stored = config.build_objective().needs_text and config.build_text() is None
    if compares_stored:
        yield Finding("ok", f"caption embeddings: {train.text_encoder}, width {train.embed_dim}")
    for validation in _open_validation_set(config):
        if compares_stored and validation.text_encoder != train.text_encoder:
            what = (
                f"validation captions come from {validation.text_encoder}, training captions from {train.text_encoder}"
            )
            yield Finding("error", what, "Build both sets with one text_encoder.")
        else:
            same = " of the same encoder" if compares_stored else ""
            yield Finding("ok", f"{len(validation):,} validation samples{same}")


def check_validation(examined: Examined) -> Iterator[Finding]:
    """What training will be followed by, and what names its best checkpoint."""
    config = examined.config
    objective = config.build_objective()
    if not config.data.val:
        what = "recall" if objective.needs_text else "k-NN accuracy"
        yield Finding("warning", "no validation shards", f"Set data.val, or {what} is not followed.")
        return
    train, (validation,) = _open_training_set(config), _open_validation_set(config)
    plan = plan_validation(validation, train, objective, config)
    measured = f"validation measures {', '.join(plan.metrics)}"
    yield Finding("ok", f"{measured}; the best checkpoint goes by {best_is(config.best_by, plan.metrics)}")
    who = ", ".join("k-NN" if name == "knn" else name for name, e in plan.evaluations.items() if "labels" in e.needs)
    if plan.gallery:
        of = int((plan.gallery.labels.numbers >= 0).sum())
        yield Finding("ok", f"{who}: among {len(plan.gallery.samples):,} of {of:,} labelled training samples")
    elif plan.labels:
        what = f"the training set has no labels, so {who} is measured among the validation samples, each without itself"
        yield Finding("warning", what, f"`shardclip column labels {' '.join(config.data.train)}`.")


def check_views(examined: Examined) -> Iterator[Finding]:
    """Two views of a picture must differ in more than what is easily undone, or comparing them teaches nothing."""
    config = examined.config
    objective = config.build_objective()
    if objective.views < 2:
        return
    augment = config.augment
    weak = []
    if augment.crop_scale[0] > _WIDEST_CROP:
        weak.append(f"crops keep at least {100 * augment.crop_scale[0]:.0f} % of a picture")
    if augment.jitter < _LEAST_JITTER:
        weak.append(f"colours change with probability {augment.jitter:g}")
    if weak:
        yield Finding(
            "warning",
            f"{config.objective.name} compares {objective.views} views of each picture, but {' and '.join(weak)}",
            "Set augment.crop_scale=0.08,1 augment.jitter=0.8 augment.grayscale=0.2, as SimCLR does.",
        )
    else:
        yield Finding("ok", f"{objective.views} views of each picture, by crops and colours")


def check_columns(examined: Examined) -> Iterator[Finding]:
    """What is known of the samples beside the shards, whether it still speaks of them, and what the objective needs."""
    config = examined.config
    for name in config.build_objective().columns:
        if name in config.data.columns:  # the others are in every batch
            yield from _check_needed(config, name, config.data.columns[name])
    if (text := config.build_text()) is not None:
        text.check_tokens(_open_training_set(config).column(text.tokens).head)
        yield Finding("ok", f"{text.tokens} was made by the tokenizer of the text tower {text.kind}")
    for url in [*config.data.train, *config.data.val]:
        own = ShardSet.open(url, config.data.cache_dir).fingerprint
        heads = []
        for name in column_names(url):
            try:
                heads.append(load_head(url, name))
            except ShardclipError as error:  # one that is damaged does not hide the others
                yield Finding("error", str(error), f"shardclip verify {url}")
        for head in heads:
            if head.fingerprint != own:
                repair = f"Delete {column_url(url, head.name)} and make it again."
                yield Finding("error", f"{url}: column {head.name} was made for other samples", repair)
        fitting = [f"{head.name} ({head.kind})" for head in heads if head.fingerprint == own]
        yield Finding("ok", f"{url}: columns {', '.join(fitting) or 'none'}")


def check_sampler(examined: Examined) -> Iterator[Finding]:
    """The sampler can fill an epoch of this data, and the columns that batches carry are there."""
    config, ranks = examined.config, examined.ranks
    train, size = _open_training_set(config), config.global_batch_size
    steps = steps_per_epoch(len(train), size, ranks)
    order = sampled(config.data.sampler, train, size, steps, config.seed, epoch=0)
    visits = np.bincount(order, minlength=len(train))
    what = f"sampler {config.data.sampler.name}: {int((visits > 0).sum()):,} samples in the first epoch"
    yield Finding("ok", f"{what}, at most {counted(int(visits.max(initial=0)), 'time')}")
    objective = config.build_objective()
    text = config.build_text()
    tokens = text.tokens if text is not None else None
    columns = batch_columns(objective, config.data.columns, tokens, config.data.image_features)
    BatchColumns(columns, "drawn").open(train)
    for validation in _open_validation_set(config):
        BatchColumns(validation_columns(objective, config), "all").open(validation)
    yield Finding("ok", f"batches carry image_id, {', '.join(columns)}")


def check_frozen_tower(examined: Examined) -> Iterator[Finding]:
    """A tower that is frozen over unchanged pictures computes the same in every epoch; stored outputs are its own."""
    config = examined.config
    if config.data.image_features:
        train = _open_training_set(config)
        model, _ = examined.model()
        for shard_set in (train, *_open_validation_set(config)):
            expect_features_of(model.encoder, config, shard_set)
        yield Finding("ok", f"{config.data.image_features} was made by this tower")
        return
    if config.model.freeze != "tower" or config.model.thaw or config.augment.changes_pictures:
        return
    sets = " ".join([*config.data.train, *config.data.val])
    yield Finding(
        "warning",
        f"the frozen tower sees the same pictures in each of {config.epochs} epochs and computes the same of them",
        f"`shardclip column features {sets} recipe=` this recipe, then set "
        f"data.image_features={default_column_name(config.model.tower)}",
    )


def check_weights(examined: Examined) -> Iterator[Finding]:
    """The tower's pretrained weights can be had here."""
    config = examined.config
    model, start = examined.model()
    count = sum(p.numel() for p in model.encoder.parameters()) / 1e6
    weights = str(start) if start else f"weights {config.model.weights}"
    yield Finding("ok", f"{config.model.tower}, {count:.1f} M parameters: {weights}")
    if config.freezes_random_weights:
        what = f"model.freeze={config.model.freeze}, but model.weights=none: what is frozen stays as chance drew it"
        yield Finding("warning", what, "Set model.freeze=nothing model.thaw={}, or give the tower weights.")


def check_opening(examined: Examined) -> Iterator[Finding]:
    """All that a run builds before it makes its folder: loader, model, optimizer; the checkpoint it goes on from."""
    config = examined.config
    objective, text = config.build_objective(), config.build_text()
    with ExitStack() as resources:
        data = open_data(config, objective, text, torch.device("cpu"), resources)
        model, _ = examined.model()
        model.encoder.image_encoder.freeze_until(data.freezing.last)  # as the trainer does: of all that ever trains
        build_optimizer(model, config.optim)
        order = order_identity(data.train, data.loader, config.data.sampler, config.seed)
        checkpoint = find_checkpoint(config, identity_of(config, model.encoder, data), order, data.train)
        goes_on = f"goes on from step {checkpoint.step}" if checkpoint else "begins"
        yield Finding("ok", f"the run {goes_on}, to step {data.total_steps:,}")


def check_memory(examined: Examined) -> Iterator[Finding]:
    """The largest block of logits, and the host's memory: for a copy of the state, and for the loader's buffers."""
    config, ranks = examined.config, examined.ranks
    rows, columns = logits_block(config, ranks)
    yield Finding("ok", f"logits: blocks of {rows:,} x {columns:,}, {rows * columns * 4 / GIB:.2f} GiB at a time")
    free = psutil.virtual_memory().available
    needed = 2 * state_bytes(config, examined.model()[0])
    what = f"the state's copies while it is saved: about {needed / GIB:.2f} GiB of {free / GIB:.1f} GiB free memory"
    yield _of_memory(what, needed, free, "Use a machine with more memory, or a smaller model.")
    if config.data.image_features:
        return  # no picture is read
    rows, workers = config.global_batch_size // ranks, config.data.num_workers
    in_flight = max_in_flight(rows, workers, config.data.prefetch)
    stored = _open_training_set(config).image.size  # the device resizes to image_size
    needed = ranks * buffer_bytes(in_flight, rows, stored)
    what = f"loader buffers of all ranks: about {needed / GIB:.2f} GiB of {free / GIB:.1f} GiB free memory"
    yield _of_memory(what, needed, free, "Lower data.prefetch or global_batch_size.")


def _of_memory(what: str, needed: float, free: float, repair: str) -> Finding:
    """More than there is cannot be had; more than half leaves little to the rest."""
    level: Level = "error" if needed > free else "warning" if needed > free / 2 else "ok"
    return Finding(level, what, "" if level == "ok" else repair)


def state_bytes(config: TrainConfig, model: TrainedModel) -> int:
    """What a run holds a copy of to save it: weights, their averages, and the moments of each that is ever trained."""
    for _, until in in_order(config.model.thaw):
        model.encoder.image_encoder.freeze_until(until)
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    trained = sum(p.nbytes for parameters in model.parameter_groups().values() for p in parameters)
    return weights * (2 if config.optim.ema_decay else 1) + config.optim.optimizer_part.num_moments * trained


def logits_block(config: TrainConfig, ranks: int) -> tuple[int, int]:
    """Rows and columns of the largest matrix that the objective compares at once.

    Columns are the global batch: every view of a picture, or every caption (of the training set's most).
    """
    objective, size = config.build_objective(), config.global_batch_size
    own = size // ranks
    rows = min(objective.block_size or own, own)
    per_sample = objective.views
    if objective.all_captions:
        text = config.build_text()
        per_sample = most_captions(_open_training_set(config), {TOKENS: text.tokens} if text else {TEXT: ""})
    return rows, size * per_sample


def check_cores(examined: Examined) -> Iterator[Finding]:
    """Loader workers of all ranks against the machine's cores."""
    config, ranks = examined.config, examined.ranks
    cores = available_cores()
    asked = config.data.num_workers * ranks
    repair = f"Set data.num_workers to {max(1, cores // ranks)} or less." if asked > cores else ""
    yield Finding(
        "warning" if repair else "ok", f"{asked} loader workers for {ranks} processes on {cores} cores", repair
    )


def check_imaging(examined: Examined) -> Iterator[Finding]:
    """pillow-simd in its own folder; Pillow and pillow-simd never mixed in one."""
    folder = Path(sys.prefix) / "lib" / "shardclip-pillow-simd"
    mixed = list(Path(sys.prefix).glob("lib/python*/site-packages/pillow_simd-*.dist-info"))
    if mixed:
        repair = "Remove both (`pip uninstall pillow pillow-simd`) and run `make setup`."
        yield Finding("error", "pillow-simd lies over Pillow in site-packages: their modules are mixed", repair)
    elif folder.is_dir():
        yield Finding("ok", "pillow-simd stands in a folder of its own, for building")
    else:
        repair = "apt-get install gcc python3-dev libjpeg-dev zlib1g-dev, then `make setup`."
        yield Finding("warning", "pillow-simd is not installed: building resizes about half as fast", repair)


def check_device(examined: Examined) -> Iterator[Finding]:
    """What computes, and in which precision."""
    config, ranks = examined.config, examined.ranks
    if not torch.cuda.is_available():
        yield Finding("warning", "no GPU: training runs on the CPU", "Fine for small runs; else install a GPU driver.")
        choose_precision(config.precision, torch.device("cpu"))
        expect_possible_sync(config, torch.device("cpu"), ranks)
        return
    if ranks > torch.cuda.device_count():
        what = f"{ranks} processes for {torch.cuda.device_count()} GPUs"
        yield Finding("error", what, f"Give --processes {torch.cuda.device_count()}, or start on several machines.")
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        yield Finding("ok", f"GPU {number}: {properties.name}, {properties.total_memory / GIB:.0f} GiB")
        if config.precision == "bf16" and not computes_bf16(torch.device("cuda", number)):
            yield Finding("warning", f"precision is bf16, which GPU {number} can only emulate", "Set precision=fp16.")


def check_wandb(examined: Examined) -> Iterator[Finding]:
    """Where metrics will go."""
    config = examined.config
    said: list[str] = []
    mode = choose_mode(config.tracking, said.append)
    yield Finding("ok", f"wandb: {mode}. {' '.join(said)}".strip())
    if config.tracking.tensorboard:
        check_trackers(config.tracking)
        yield Finding("ok", f"TensorBoard: `tensorboard --logdir {config.run_dir}`")


CHECKS: tuple[Check, ...] = (
    check_device,
    check_shards,
    check_columns,
    check_validation,
    check_views,
    check_sampler,
    check_weights,
    check_frozen_tower,
    check_opening,
    check_memory,
    check_cores,
    check_imaging,
    check_wandb,
)


def findings_of(check: Check, examined: Examined) -> list[Finding]:
    """What a check found; a sentence that it raises is its last finding, and the other checks go on."""
    findings: list[Finding] = []
    try:
        findings.extend(check(examined))
    except ShardclipError as error:
        findings.append(Finding("error", str(error)))
    return findings


def _check_needed(config: TrainConfig, name: str, column: str) -> Iterator[Finding]:
    """A column without which the objective cannot say which samples belong together."""
    head = _open_training_set(config).column(column).head
    who = f"{config.objective.name} needs '{name}'"
    if head.per != "sample" or np.dtype(head.dtype).kind != "i":
        what = f"{who}: column {column} is {head.kind} ({head.dtype} a {head.per}), a number for each sample is needed"
        yield Finding("error", what, f"Name a column of labels or topics in data.columns.{name}.")
    else:
        yield Finding("ok", f"{who}: column {column} ({head.kind})")


def _open_training_set(config: TrainConfig) -> ShardSet:
    return ShardSet.open(config.data.train, config.data.cache_dir, config.data.text)


def _open_validation_set(config: TrainConfig) -> Iterator[ShardSet]:
    """The validation set, if there is one."""
    if config.data.val:
        yield ShardSet.open(config.data.val, config.data.cache_dir, config.data.text)
