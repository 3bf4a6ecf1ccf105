"""Open a run: every part is built, checked against the others and put where the last process left it.

What fails here fails before step 1, with one sentence; nothing is created before all that is built is checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from core.config import to_mapping
from core.distributed import is_main, on_main, rank, world_size
from core.errors import CheckpointError, ConfigError, PeerLostError, StorageError
from core.host_memory import keep_freed_memory
from core.precision import choose_precision
from core.seeding import derive_seed
from core.shard_set import ShardSet
from trainer.checkpoint.background import Saver
from trainer.checkpoint.folder import (
    STORED_SIZE,
    Checkpoint,
    load_checkpoint,
    load_latest,
    resolve_checkpoint,
    set_aside_after,
)
from trainer.config import BEST_BY, TrainConfig
from trainer.data.feature_column import expect_features_of
from trainer.data.inputs import batch_columns
from trainer.data.ledger import CoverageLedger
from trainer.data.loader import TrainLoader
from trainer.data.order_identity import order_difference, order_identity
from trainer.guard.peer_watch import PeerWatch
from trainer.guard.signals import StopRequest
from trainer.models.encoder import Encoder
from trainer.models.picture_type import picture_type
from trainer.models.texts.text import LiveText
from trainer.models.trained import TrainedModel
from trainer.objectives.objective import Objective
from trainer.optim.build import build_optimizer
from trainer.optim.ema import AveragedModel
from trainer.optim.schedule import lr_at
from trainer.pictures.augment import Augment, Normalize
from trainer.run.accelerator import open_accelerator
from trainer.run.announce import announce
from trainer.run.environment import describe_environment
from trainer.run.folder import CHECKPOINTS, RunFolder, note_failure, open_run_folder, record_event
from trainer.run.recipe_model import recipe_model
from trainer.run.rng import seed_generators, set_rng_state
from trainer.run.run import MakeValidation, Run, console
from trainer.run.start_from import Start
from trainer.run.state import Holders, RunState, restore, state_of
from trainer.step.proof import ProofInputs, prove_gradients
from trainer.telemetry.flops import flops_per_image, peak_flops
from trainer.telemetry.stability import StabilityConfig
from trainer.telemetry.window import Telemetry
from trainer.trackers.tracker import RunTrackers

_PROOF_SAMPLES = 16  # whose captions the proof draws from


@dataclass(frozen=True)
class Data:
    """The shard sets of a run, and its loader."""

    train: ShardSet
    val: ShardSet | None
    loader: TrainLoader
    size: int  # of the pictures that the tower sees, pixels
    total_steps: int


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
    accelerator = open_accelerator(config)
    watch = resources.enter_context(PeerWatch(config.peer_timeout_s))
    device = accelerator.device
    if device.type == "cpu":
        keep_freed_memory()
    if config.resume not in ("auto", "no"):
        on_main(lambda: resolve_checkpoint(Path(config.resume)))  # before a folder is made for it
    objective, text = config.build_objective(), config.build_text()
    data = _open_data(config, objective, text, device, resources)
    seed_generators(config.seed)  # the same initial weights on every rank
    bare, start = _build_model(config, data)
    encoder = bare.encoder
    input_shape = _input_shape(config, encoder, data.size)
    # A text tower that is trained is not counted, so nothing is said of the device's use then.
    flops = flops_per_image(encoder.image_encoder, input_shape) * objective.views if text is None else None
    model, holders = _prepare(config, bare, accelerator)
    identity = _identity(config, encoder, data)
    mean, std = encoder.normalization
    normalize = Normalize(data.size, mean, std, config.model.channels_last)
    validate = None
    if data.val:
        validate = make_validation(data.val, data.train, normalize, objective, config, accelerator)
    order = order_identity(data.train, data.loader, config.data.sampler, config.seed)
    environment = describe_environment(world_size())
    checkpoint = _find_checkpoint(config, identity, order, data.train)
    saver = Saver()
    folder = _open_folder(config, environment, checkpoint, resources, watch, saver)
    if checkpoint is not None:
        on_main(lambda: set_aside_after(folder.checkpoints, checkpoint.step) and None)

    inputs = _proof_inputs(objective, text, data, input_shape)
    ratios = prove_gradients(
        model, objective, holders.objective_state, inputs, accumulate=config.accumulate, seed=config.seed
    )
    if config.model.compile:
        holders.model.compile()
    seed_generators(derive_seed(config.seed, "dropout", rank()))

    peak = peak_flops(device, accelerator.mixed_precision)
    run = Run(
        config=config,
        accelerator=accelerator,
        folder=folder,
        resources=resources,
        stop=stop,
        loader=data.loader,
        ledger=_ledger(config, data.train, device),
        augment=_augment(config, encoder, data, accelerator),
        objective=objective,
        model=model,
        holders=holders,
        validate=validate,
        telemetry=Telemetry(device, flops_per_image=flops, peak_flops=peak, stability=StabilityConfig()),
        trackers=RunTrackers(),
        saver=saver,
        identity={**identity, "config": to_mapping(config), STORED_SIZE: data.train.image.size},
        order_identity=order,
        environment=environment,
        total_steps=data.total_steps,
    )
    state = _go_on(run, checkpoint) if checkpoint else None
    if start is not None and checkpoint is None:
        on_main(lambda: _note_start(run, start))
    epoch, step_in_epoch = divmod(run.start_step, data.loader.steps_per_epoch)
    run.ledger.start(epoch, data.loader.order(epoch), step_in_epoch, state.ledger if state else None)
    on_main(lambda: announce(run, data.train, data.val, ratios))
    model.train()
    return run


def _open_data(
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
    _expect_whole_chunks(config)
    return Data(train_set, val_set, loader, config.image_size or train_set.image.size, total_steps)


def _open_validation_set(config: TrainConfig, train_set: ShardSet, compares_stored: bool) -> ShardSet | None:
    if not config.data.val:
        return None
    val_set = ShardSet.open(config.data.val, config.data.cache_dir, config.data.text)
    if compares_stored and val_set.text_encoder != train_set.text_encoder:
        raise ConfigError(
            f"{config.data.val[0]}: captions were embedded by {val_set.text_encoder}, those of training by "
            f"{train_set.text_encoder}. Build both sets with the same text_encoder."
        )
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
        max_damaged=config.data.max_damaged,
    )


def _expect_whole_chunks(config: TrainConfig) -> None:
    own = config.global_batch_size // world_size()
    if own % config.accumulate or own // config.accumulate < 1:
        raise ConfigError(
            f"accumulate is {config.accumulate}: a process has {own} of the {config.global_batch_size} pairs, which "
            "cannot be cut into that many equal pieces. Choose a divisor."
        )


def _build_model(config: TrainConfig, data: Data) -> tuple[TrainedModel, Start | None]:
    """The model as it begins, checked against the stored outputs of its tower where those are read."""
    model, start = recipe_model(config, data.train)
    for shard_set in (data.train, data.val):
        if shard_set is not None and config.data.image_features:
            expect_features_of(model.encoder, config, shard_set)
    return model, start


def _input_shape(config: TrainConfig, encoder: Encoder, size: int) -> tuple[int, ...]:
    """Of one input of the image encoder."""
    return (encoder.image_encoder.tower_dim,) if config.data.image_features else (3, size, size)


def _prepare(config: TrainConfig, model: TrainedModel, accelerator: Accelerator) -> tuple[nn.Module, Holders]:
    """The model on its device, wrapped for several processes, and all that a run goes on from."""
    device = accelerator.device
    bare = _placed(model, config, device)
    averaged = AveragedModel(bare, config.optim.ema_decay) if config.optim.ema_decay else None
    wrapped, optimizer = accelerator.prepare(bare, build_optimizer(bare, config.optim))
    state = bare.objective.initial_state(bare.encoder.describe()["embed_dim"])
    on_device = {name: tensor.to(device) for name, tensor in state.items()}
    return wrapped, Holders(bare, on_device, averaged, optimizer)


def _placed(model: TrainedModel, config: TrainConfig, device: torch.device) -> TrainedModel:
    model = model.to(device)
    if config.model.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if config.model.sync_batchnorm and world_size() > 1:
        if device.type != "cuda":
            raise ConfigError("model.sync_batchnorm needs GPUs. Set model.sync_batchnorm=false.")
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return model


def _augment(config: TrainConfig, encoder: Encoder, data: Data, accelerator: Accelerator) -> Augment:
    """From stored pictures to what the tower takes, in its type; unused where stored features take their place."""
    precision = choose_precision(config.precision, accelerator.device)
    dtype = picture_type(encoder.image_encoder, data.size, accelerator.device, precision)
    mean, std = encoder.normalization
    return Augment(config.augment, data.size, mean, std, config.seed, config.model.channels_last, dtype)


def _proof_inputs(objective: Objective, text: LiveText | None, data: Data, input_shape: tuple[int, ...]) -> ProofInputs:
    captions = 2 if objective.all_captions else 0
    if text is None:
        return ProofInputs(input_shape, data.train.embed_dim if objective.needs_text else None, None, captions)
    column = data.train.column(text.tokens)
    some = [column.of_captions(sample) for sample in range(min(_PROOF_SAMPLES, len(data.train)))]
    return ProofInputs(input_shape, None, torch.from_numpy(np.concatenate(some)), captions)


def _identity(config: TrainConfig, encoder: Encoder, data: Data) -> dict[str, Any]:
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


def _ledger(config: TrainConfig, train_set: ShardSet, device: torch.device) -> CoverageLedger:
    ranks = (rank(), world_size())
    return CoverageLedger(len(train_set), config.global_batch_size, *ranks, config.data.max_damaged, device)


def _open_folder(
    config: TrainConfig,
    environment: Mapping[str, Any],
    checkpoint: Checkpoint | None,
    resources: ExitStack,
    watch: PeerWatch,
    saver: Saver,
) -> RunFolder:
    """The run folder, held by rank 0 until nothing is saved into it; every failure is noted in it from now on."""
    step = checkpoint.step if checkpoint else None

    def enter() -> RunFolder:
        opened = open_run_folder(
            config.run_dir, config, environment=environment, resume=config.resume, resumed_from=step
        )
        return resources.enter_context(opened)

    folder = on_main(enter)
    resources.callback(_end_saving, saver, folder.path)
    resources.push(partial(note_failure, folder.path))
    watch.note = lambda sentence: note_failure(folder.path, PeerLostError, PeerLostError(sentence), None)
    resources.push(watch.explain)  # before the failure is noted
    return folder


def _end_saving(saver: Saver, run_dir: Path) -> None:
    """Let the checkpoint under way come to its end where a run ends with another error than that one's."""
    if (error := saver.close()) is not None:
        console.print(f"the checkpoint under way failed too: {error}")
        with suppress(StorageError):  # a full disk takes no note either
            record_event(run_dir, "checkpoint failed", error=f"{type(error).__name__}: {error}")


def _find_checkpoint(
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
    if difference := order_difference(checkpoint.state.get("order", {}), order, train_set):
        raise CheckpointError(
            f"{found}: {difference}: the samples would come in another order. Put it back, or start in another run_dir."
        )
    return checkpoint


def _path_of(checkpoint: Checkpoint | None) -> Path | None:
    return checkpoint.path if checkpoint else None


def _note_start(run: Run, start: Start) -> None:
    """Say what the run took over, in the journal too; on rank 0."""
    console.print(str(start))
    reason = f"start_from={run.config.start_from} start_parts={run.config.start_parts}"
    record_event(run.folder.path, "started from", 0, reason=reason, **start.account())


def _go_on(run: Run, checkpoint: Checkpoint) -> RunState:
    """Put model, optimizer, scaler and random generators back."""
    state = state_of(checkpoint)
    restore(run.holders, checkpoint, state)
    if run.accelerator.scaler is not None and state.scaler is not None:
        run.accelerator.scaler.load_state_dict(dict(state.scaler))
    if state.world_size == world_size():
        set_rng_state(state.rng[rank()])
    elif is_main():
        console.print(f"{state.world_size} processes before, {world_size()} now: the same batches, dropout drawn anew.")
    run.summary = dict(state.summary)
    run.start_step, run.earlier_seconds = state.step, state.seconds
    if checkpoint.identity.get("config", {}).get("best_by", BEST_BY) == run.config.best_by:
        run.best_score = state.best_score  # scores by another metric are not to be compared with
    if is_main():
        reason = "the newest checkpoint" if run.config.resume == "auto" else f"resume={run.config.resume}"
        record_event(run.folder.path, "resumed", state.step, path=str(checkpoint.path), reason=reason)
    return state
