"""Open a run: every part is built, checked against the others and put where the last process left it.

What fails here fails before step 1, with one sentence.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import nn

from core.config import to_mapping
from core.distributed import is_main, on_main, rank, world_size
from core.errors import CheckpointError, ConfigError, PeerLostError
from core.parts import build
from core.seeding import derive_seed
from core.shard_set import ShardSet
from core.storage import exists, join, publish_bytes, read_bytes
from trainer.augment import Augment, Normalize
from trainer.checkpoint import Checkpoint, load_checkpoint, load_latest, resolve_checkpoint, set_aside_after
from trainer.config import TrainConfig
from trainer.data.feature_column import expect_features_of
from trainer.data.inputs import batch_columns
from trainer.data.ledger import CoverageLedger
from trainer.data.loader import TrainLoader
from trainer.data.order_identity import order_difference, order_identity
from trainer.ema import averaged_model
from trainer.environment import describe_environment
from trainer.flops import flops_per_image, peak_flops
from trainer.host_memory import keep_freed_memory
from trainer.losses import LOSSES
from trainer.models import ContrastiveModel, build_model
from trainer.optim import build_optimizer
from trainer.peer_watch import PeerWatch
from trainer.proof import prove_gradients
from trainer.rng import seed_generators, set_rng_state
from trainer.run import MakeValidation, Run, console
from trainer.run_folder import RunFolder, note_failure, open_run_folder
from trainer.schedule import lr_at
from trainer.signals import StopRequest
from trainer.stability import StabilityConfig
from trainer.telemetry import Telemetry
from trainer.trackers.opening import open_trackers
from trainer.trackers.tracker import RunTrackers
from trainer.trackers.wandb_tracker import RunIdentity

CONTACT_SHEET = "contact_sheet.jpg"  # where the builder left one
_STATE_DEFAULTS: dict[str, Any] = {"scaler": None, "best_score": None, "summary": {}, "num_averaged": 0, "seconds": 0.0}


def open_run(config: TrainConfig, make_validation: MakeValidation) -> Run:
    """Build and check every part of a run, and take it up where it stands; collective.

    Raises:
        ShardclipError: in one sentence, whatever would have gone wrong later.
    """
    with ExitStack() as resources:  # closed here only if something fails; otherwise with the run
        run = _open(config, make_validation, resources)
        run.resources = resources.pop_all()
    return run


def _open(config: TrainConfig, make_validation: MakeValidation, resources: ExitStack) -> Run:
    stop = resources.enter_context(StopRequest())  # from here on: opening may take minutes
    accelerator = _accelerator(config)
    watch = resources.enter_context(PeerWatch(config.peer_timeout_s))
    device = accelerator.device
    if device.type == "cpu":
        keep_freed_memory()
    train_set = ShardSet.open(config.data.train, config.data.cache_dir, config.data.text)
    val_set = _open_validation_set(config, train_set)
    loader = _loader(config, train_set, device)
    resources.callback(loader.close)
    total_steps = min(config.epochs * loader.steps_per_epoch, 2**62 if config.max_steps is None else config.max_steps)
    lr_at(0, total_steps, config.optim)  # a warm-up longer than the run ends here
    _expect_whole_chunks(config)

    seed_generators(config.seed)  # the same initial weights on every rank
    bare_model = build_model(config.model, train_set.embed_dim, config.image_size or train_set.image.size)
    size, channels_last = config.image_size or train_set.image.size, config.model.channels_last
    mean, std = bare_model.normalization
    identity = _identity(bare_model, train_set, size)
    order = order_identity(train_set, loader, config.data.sampler, config.seed)
    environment = describe_environment(world_size())
    folder = _open_folder(config, environment, resources, watch)
    checkpoint = _find_checkpoint(config, folder, identity, order, train_set)

    for shard_set in (train_set, val_set):
        if shard_set is not None and config.data.image_features:
            expect_features_of(bare_model, config, shard_set)
    bare_model = _placed(bare_model, config, device)
    averaged = averaged_model(bare_model, config.optim.ema_decay) if config.optim.ema_decay else None
    model, optimizer = accelerator.prepare(bare_model, build_optimizer(bare_model, config.optim))
    loss_fn = build(LOSSES, config.loss, kind="loss")
    input_shape = (bare_model.image_encoder.tower_dim,) if config.data.image_features else (3, size, size)
    ratios = _prove(config, model, loss_fn, input_shape, train_set.embed_dim)
    flops, peak = flops_per_image(bare_model, input_shape), peak_flops(device, accelerator.mixed_precision)
    if config.model.compile:
        bare_model.compile()
    seed_generators(derive_seed(config.seed, "dropout", rank()))

    normalize = Normalize(size, mean, std, channels_last)
    run = Run(
        config=config,
        accelerator=accelerator,
        folder=folder,
        resources=resources,
        stop=stop,
        loader=loader,
        ledger=_ledger(config, train_set, device),
        augment=Augment(config.augment, size, mean, std, config.seed, channels_last),
        model=model,
        bare_model=bare_model,
        averaged=averaged,
        optimizer=optimizer,
        loss_fn=loss_fn,
        validate=make_validation(val_set, normalize, loss_fn, config, accelerator) if val_set else None,
        telemetry=Telemetry(device, flops_per_image=flops, peak_flops=peak, stability=StabilityConfig()),
        trackers=RunTrackers(),
        identity={**identity, "config": to_mapping(config)},
        order_identity=order,
        environment=environment,
        total_steps=total_steps,
    )
    ledger_state = _resume(run, checkpoint) if checkpoint else None
    epoch, step_in_epoch = divmod(run.start_step, loader.steps_per_epoch)
    run.ledger.start(epoch, loader.order(epoch), step_in_epoch, ledger_state)
    on_main(lambda: _announce(run, train_set, val_set, ratios))
    model.train()
    return run


def _loader(config: TrainConfig, train_set: ShardSet, device: torch.device) -> TrainLoader:
    return TrainLoader(
        train_set,
        global_batch_size=config.global_batch_size,
        rank=rank(),
        world_size=world_size(),
        seed=config.seed,
        num_workers=config.data.num_workers,
        prefetch=config.data.prefetch,
        sampler=config.data.sampler,
        columns=batch_columns(config.data.columns, config.data.image_features),
        pictures=not config.data.image_features,
        pin_memory=device.type == "cuda",
        max_damaged=config.data.max_damaged,
    )


def _ledger(config: TrainConfig, train_set: ShardSet, device: torch.device) -> CoverageLedger:
    ranks = (rank(), world_size())
    return CoverageLedger(len(train_set), config.global_batch_size, *ranks, config.data.max_damaged, device)


def _identity(model: ContrastiveModel, train_set: ShardSet, size: int) -> dict[str, Any]:
    """What the weights are: a checkpoint with another identity is of another model."""
    mean, std = model.normalization
    return {
        "model": model.describe(),
        "text_encoder": asdict(train_set.text_encoder) if train_set.text_encoder else None,
        "image": {"size": size, "fit": train_set.image.fit, "mean": list(mean), "std": list(std)},
    }


def _accelerator(config: TrainConfig) -> Accelerator:
    if config.precision == "auto":
        has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        precision = "bf16" if has_bf16 else "no"
    else:
        precision = config.precision
    if precision == "fp16" and not torch.cuda.is_available():
        raise ConfigError("precision is fp16, which needs a GPU. Set precision=no.")
    return Accelerator(
        mixed_precision=precision,
        cpu=not torch.cuda.is_available(),
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=timedelta(seconds=config.timeout_s)),
            DistributedDataParallelKwargs(gradient_as_bucket_view=True),
        ],
    )


def _open_validation_set(config: TrainConfig, train_set: ShardSet) -> ShardSet | None:
    if not config.data.val:
        return None
    val_set = ShardSet.open(config.data.val, config.data.cache_dir, config.data.text)
    if val_set.text_encoder != train_set.text_encoder:
        raise ConfigError(
            f"{config.data.val[0]}: captions were embedded by {val_set.text_encoder}, those of training by "
            f"{train_set.text_encoder}. Build both sets with the same text_encoder."
        )
    return val_set


def _expect_whole_chunks(config: TrainConfig) -> None:
    own = config.global_batch_size // world_size()
    if own % config.accumulate or own // config.accumulate < 1:
        raise ConfigError(
            f"accumulate is {config.accumulate}: a process has {own} of the {config.global_batch_size} pairs, which "
            "cannot be cut into that many equal pieces. Choose a divisor."
        )


def _prove(
    config: TrainConfig, model: nn.Module, loss_fn: Any, input_shape: tuple[int, ...], embed_dim: int
) -> dict[str, float]:
    shapes: dict[str, Any] = {"input_shape": input_shape, "embed_dim": embed_dim}
    return prove_gradients(model, loss_fn, **shapes, accumulate=config.accumulate, seed=config.seed)


def _open_folder(
    config: TrainConfig, environment: Mapping[str, Any], resources: ExitStack, watch: PeerWatch
) -> RunFolder:
    """The run folder, held by rank 0, in which every way of failing is noted from now on."""

    def enter() -> RunFolder:
        opened = open_run_folder(config.run_dir, config, environment=environment, resume=config.resume)
        return resources.enter_context(opened)

    folder = on_main(enter)
    resources.push(partial(note_failure, folder.path))
    watch.note = lambda sentence: note_failure(folder.path, PeerLostError, PeerLostError(sentence), None)
    resources.push(watch.explain)  # before the failure is noted
    return folder


def _find_checkpoint(
    config: TrainConfig, folder: RunFolder, identity: Mapping[str, Any], order: Mapping[str, Any], train_set: ShardSet
) -> Checkpoint | None:
    if config.resume in ("auto", "no"):
        found = on_main(lambda: _path_of(load_latest(folder.checkpoints, identity)))
    else:
        found = on_main(lambda: resolve_checkpoint(Path(config.resume)))
    if found is None:
        return None
    checkpoint = load_checkpoint(found, identity)
    if difference := order_difference(checkpoint.state.get("order", {}), order, train_set):
        raise CheckpointError(
            f"{found}: {difference}: the samples would come in another order. Put it back, or start in another run_dir."
        )
    if folder.path.resolve() in found.resolve().parents:
        on_main(lambda: set_aside_after(folder.checkpoints, checkpoint.step) and None)
    return checkpoint


def _path_of(checkpoint: Checkpoint | None) -> Path | None:
    return checkpoint.path if checkpoint else None


def _placed(model: ContrastiveModel, config: TrainConfig, device: torch.device) -> ContrastiveModel:
    model = model.to(device)
    if config.model.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if config.model.sync_batchnorm and world_size() > 1:
        if device.type != "cuda":
            raise ConfigError("model.sync_batchnorm needs GPUs. Set model.sync_batchnorm=false.")
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return model


def _resume(run: Run, checkpoint: Checkpoint) -> Any:
    """Put model, optimizer, scaler and random generators back; returns the ledger's state."""
    state = _complete(checkpoint)
    run.bare_model.load_state_dict(checkpoint.model_state)
    _load_optimizer(run.optimizer, checkpoint)
    if run.accelerator.scaler is not None and state["scaler"] is not None:
        run.accelerator.scaler.load_state_dict(state["scaler"])
    if state["world_size"] == world_size():
        set_rng_state(state["rng"][rank()])
    elif is_main():
        console.print(
            f"{state['world_size']} processes before, {world_size()} now: the same batches, dropout drawn anew."
        )
    run.summary = dict(state["summary"])
    if run.averaged and checkpoint.ema_state:
        run.averaged.module.load_state_dict(checkpoint.ema_state)
        run.averaged.n_averaged.fill_(state["num_averaged"])
    run.start_step, run.best_score = int(state["step"]), state["best_score"]
    run.earlier_seconds = float(state["seconds"])
    return state["ledger"]


def _complete(checkpoint: Checkpoint) -> dict[str, Any]:
    """The checkpoint's state, with the defaults of what an older one does not hold yet."""
    state = {**_STATE_DEFAULTS, **checkpoint.state}
    if missing := [name for name in ("step", "world_size", "rng", "ledger") if name not in state]:
        raise CheckpointError(
            f"{checkpoint.path}: its state has no '{missing[0]}', so it was written by another version and cannot be "
            "resumed. Start in another run_dir."
        )
    return state


def _load_optimizer(optimizer: Any, checkpoint: Checkpoint) -> None:
    """Moments from the checkpoint, settings from the recipe: a changed weight_decay or learning rate counts."""
    now, was = optimizer.param_groups, checkpoint.optimizer_state["param_groups"]
    if [(g["name"], len(g["params"])) for g in now] != [(g["name"], len(g["params"])) for g in was]:
        raise CheckpointError(
            f"{checkpoint.path}: was trained with other parameters than this recipe trains. Put model.freeze and "
            "optim back, or start in another run_dir."
        )
    settings = [{name: value for name, value in group.items() if name != "params"} for group in now]
    optimizer.load_state_dict(checkpoint.optimizer_state)
    for group, ours in zip(optimizer.param_groups, settings):
        group.update(ours)


def _announce(run: Run, train_set: ShardSet, val_set: ShardSet | None, ratios: Mapping[str, float]) -> None:
    """Open the trackers and the registry's line; say what will happen. On rank 0."""
    config = run.config
    name = RunIdentity(run.folder.run_id, run.folder.name, run.folder.path, to_mapping(config))
    resumed_from = run.start_step or None
    run.trackers = open_trackers(config.tracking, name, resumed_from=resumed_from, say=console.print)
    checks = {f"check/grad_ratio_{name}": ratio for name, ratio in ratios.items()}
    run.trackers.log(checks, run.start_step, run.start_step * config.global_batch_size)
    if run.start_step < run.total_steps:
        run.register(run.start_step, "running")
    if not run.start_step:
        _show_contact_sheets(run)
    _say_what_will_happen(run, train_set, val_set, ratios)


def _show_contact_sheets(run: Run) -> None:
    """What is trained on, to look at: the sets' own contact sheets, copied beside the run's other pictures."""
    for number, url in enumerate(run.config.data.train):
        sheet, path = join(url, CONTACT_SHEET), run.folder.path / "pictures" / f"contact-sheet-{number}-00000000.jpg"
        if exists(sheet):
            publish_bytes(read_bytes(sheet), path)
            run.trackers.log_image("check/contact_sheet", path, url, 0)


def _say_what_will_happen(run: Run, train_set: ShardSet, val_set: ShardSet | None, ratios: Mapping[str, float]) -> None:
    config = run.config
    for change in run.folder.config_changes:
        console.print(f"[yellow]changed since the last start[/]: {change}")
    start = f"going on at step {run.start_step:,} of" if run.start_step else "training for"
    draws, sampler = run.steps_per_epoch * config.global_batch_size, config.data.sampler.name
    left = f"{len(train_set) - draws} left over" if sampler == "uniform" else f"{draws:,} draws by {sampler}"
    accelerator = run.accelerator
    console.print(
        f"{run.folder.path}: {start} {run.total_steps:,} steps, {run.steps_per_epoch:,} an epoch of {len(train_set):,} "
        f"samples ({left}); global batch {config.global_batch_size} on {world_size()} x "
        f"{accelerator.device.type}, precision {accelerator.mixed_precision}; "
        f"validation on {len(val_set) if val_set else 0:,} images"
    )
    figures = ", ".join(f"{name} {ratio:.6f}" for name, ratio in ratios.items())
    console.print(f"gradient proof passed: |gradient| / |one-process gradient|: {figures}")
