"""Open a run: every part is built, checked against the others and put where the last process left it.

What fails here fails before step 1, with one sentence; nothing is created before all that is built is checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from core.config import to_mapping
from core.distributed import is_main, on_main, rank, world_size
from core.errors import PeerLostError, StorageError
from core.host_memory import keep_freed_memory
from core.precision import choose_precision
from core.seeding import derive_seed
from core.shard_set import ShardSet
from trainer.checkpoint.background import Saver
from trainer.checkpoint.folder import STORED_SIZE, Checkpoint, resolve_checkpoint, set_aside_after
from trainer.config import BEST_BY, TrainConfig
from trainer.data.ledger import CoverageLedger
from trainer.data.order_identity import order_identity
from trainer.early import check_tracking
from trainer.guard.peer_watch import PeerWatch
from trainer.guard.signals import StopRequest
from trainer.models.encoder import Encoder
from trainer.models.picture_type import picture_type
from trainer.models.texts.text import LiveText
from trainer.objectives.objective import Objective
from trainer.pictures.augment import Augment, Normalize
from trainer.run.accelerator import open_accelerator
from trainer.run.announce import announce
from trainer.run.environment import describe_environment
from trainer.run.folder import RunFolder, note_failure, open_run_folder, record_event
from trainer.run.parts import Data, build_model, find_checkpoint, identity_of, open_data, proof_inputs, shape_of_inputs
from trainer.run.prepare import prepare
from trainer.run.rng import seed_generators, set_rng_state
from trainer.run.run import Run, console
from trainer.run.start_from import Start
from trainer.run.state import Holders, RunState, restore, state_of
from trainer.run.validation import MakeValidation, Validate
from trainer.step.proof import ProofInputs, prove_gradients
from trainer.telemetry.flops import flops_per_image, peak_flops
from trainer.telemetry.stability import StabilityConfig
from trainer.telemetry.window import Telemetry
from trainer.trackers.tracker import RunTrackers


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
    on_main(lambda: check_tracking(config, None))  # where they are opened; its mistake ends all ranks
    objective, text = config.build_objective(), config.build_text()
    data = open_data(config, objective, text, device, resources)
    seed_generators(config.seed)  # the same initial weights on every rank
    bare, start = build_model(config, data)
    encoder = bare.encoder
    identity = identity_of(config, encoder, data)
    order = order_identity(data.train, data.loader, config.data.sampler, config.seed)
    checkpoint = find_checkpoint(config, identity, order, data.train)
    steps_done = checkpoint.step if checkpoint else 0
    encoder.image_encoder.freeze_until(data.freezing.at(steps_done))
    input_shape = shape_of_inputs(config, encoder, data.size)
    count_flops = partial(_flops, encoder, input_shape, objective, text)
    flops = count_flops()
    model, holders = prepare(config, bare, accelerator, data.freezing, steps_done)
    validate = _validation(config, data, objective, encoder, accelerator, make_validation)
    environment = describe_environment(world_size())
    saver = Saver()
    folder = _open_folder(config, environment, checkpoint, resources, watch, saver)
    if checkpoint is not None:
        on_main(lambda: set_aside_after(folder.checkpoints, checkpoint.step) and None)

    prove = partial(_prove, config, holders, proof_inputs(objective, text, data, input_shape))
    ratios = prove(model)
    if config.model.compile:
        holders.model.compile()
    seed_generators(derive_seed(config.seed, "dropout", rank()))

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
        prove=prove,
        count_flops=count_flops,
        freezing=data.freezing,
        holders=holders,
        validate=validate,
        telemetry=_telemetry(accelerator, flops),
        trackers=RunTrackers(),
        saver=saver,
        identity={**identity, "config": to_mapping(config), STORED_SIZE: data.train.image.size},
        order_identity=order,
        environment=environment,
        total_steps=data.total_steps,
        answers_by=data.answers_by,
    )
    state = _go_on(run, checkpoint) if checkpoint else None
    if start is not None and checkpoint is None:
        on_main(lambda: _note_start(run, start))
    epoch, step_in_epoch = divmod(run.start_step, data.loader.steps_per_epoch)
    run.ledger.start(epoch, data.loader.order(epoch), step_in_epoch, state.ledger if state else None)
    on_main(lambda: announce(run, data.train, data.val, ratios))
    model.train()
    return run


def _flops(encoder: Encoder, input_shape: tuple[int, ...], objective: Objective, text: LiveText | None) -> float | None:
    """Of one sample, by what trains now."""
    if text is not None:  # a text tower that is trained is not counted, so nothing is said of the device's use
        return None
    return flops_per_image(encoder.image_encoder, input_shape) * objective.views


def _telemetry(accelerator: Accelerator, flops: float | None) -> Telemetry:
    peak = peak_flops(accelerator.device, accelerator.mixed_precision)
    return Telemetry(accelerator.device, flops_per_image=flops, peak_flops=peak, stability=StabilityConfig())


def _augment(config: TrainConfig, encoder: Encoder, data: Data, accelerator: Accelerator) -> Augment:
    """From stored pictures to what the tower takes, in its type; unused where stored features take their place."""
    precision = choose_precision(config.precision, accelerator.device)
    dtype = picture_type(encoder.image_encoder, data.size, accelerator.device, precision)
    mean, std = encoder.normalization
    return Augment(config.augment, data.size, mean, std, config.seed, config.model.channels_last, dtype)


def _validation(
    config: TrainConfig,
    data: Data,
    objective: Objective,
    encoder: Encoder,
    accelerator: Accelerator,
    make_validation: MakeValidation,
) -> Validate | None:
    """What measures the model at a step, where there is anything to measure it on."""
    if data.val is None:
        return None
    mean, std = encoder.normalization
    normalize = Normalize(data.size, mean, std, config.model.channels_last)
    return make_validation(data.val, data.train, normalize, objective, config, accelerator)


def _prove(config: TrainConfig, holders: Holders, inputs: ProofInputs, wrapped: nn.Module) -> dict[str, float]:
    """Hold the gradients of what trains now against those of one process."""
    objective, state = holders.model.objective, holders.objective_state
    return prove_gradients(wrapped, objective, state, inputs, accumulate=config.accumulate, seed=config.seed)


def _ledger(config: TrainConfig, train_set: ShardSet, device: torch.device) -> CoverageLedger:
    ranks, most_damaged = (rank(), world_size()), config.data.most_damaged(len(train_set))
    return CoverageLedger(len(train_set), config.global_batch_size, *ranks, most_damaged, device)


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
        console.print(f"the checkpoint under way failed too: {error}", markup=False)
        with suppress(StorageError):  # a full disk takes no note either
            record_event(run_dir, "checkpoint failed", error=f"{type(error).__name__}: {error}")


def _note_start(run: Run, start: Start) -> None:
    """Say what the run took over, in the journal too; on rank 0."""
    console.print(str(start), markup=False)
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
    _take_best_score(run, checkpoint, state)
    if is_main():
        reason = "the newest checkpoint" if run.config.resume == "auto" else f"resume={run.config.resume}"
        record_event(run.folder.path, "resumed", state.step, path=str(checkpoint.path), reason=reason)
    return state


def _take_best_score(run: Run, checkpoint: Checkpoint, state: RunState) -> None:
    """The best score so far, where those to come are measured as it was: no other metric, no other right answers."""
    if checkpoint.identity.get("config", {}).get("best_by", BEST_BY) != run.config.best_by:
        return
    if state.answers_by == run.answers_by or state.best_score is None:
        run.best_score = state.best_score
    elif is_main():
        record_event(run.folder.path, "answers changed", state.step, was=state.answers_by, now=run.answers_by)
        console.print(
            f"right answers went by {state.answers_by} until step {state.step} and go by {run.answers_by} from here "
            "on: recalls before and after are not to be compared, and the best score begins anew."
        )
