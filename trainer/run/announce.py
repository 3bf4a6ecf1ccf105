"""What a run says before its first step: trackers, contact sheets, and one paragraph for people. On rank 0."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial

from rich.markup import escape

from core.config import to_mapping
from core.distributed import world_size
from core.shard_set import ShardSet
from core.spoken import counted
from core.storage import exists, join, publish_bytes, read_bytes
from trainer.run.run import Run, console
from trainer.telemetry import names
from trainer.trackers.opening import open_trackers
from trainer.trackers.tracker import RunIdentity

CONTACT_SHEET = "contact_sheet.jpg"  # where the builder left one


def announce(run: Run, train_set: ShardSet, val_set: ShardSet | None, ratios: Mapping[str, float]) -> None:
    """Open the trackers and the registry's line; say what will happen. On rank 0."""
    config = run.config
    parent = {"continues": asdict(run.folder.parent)} if run.folder.parent else {}
    name = RunIdentity(run.folder.run_id, run.folder.name, run.folder.path, {**to_mapping(config), **parent})
    resumed_from = run.start_step or None
    run.trackers = open_trackers(
        config.tracking, name, resumed_from=resumed_from, say=partial(console.print, markup=False)
    )
    checks = {names.grad_ratio(group): ratio for group, ratio in ratios.items()}
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
            run.trackers.log_image(names.CONTACT_SHEET, path, url, 0)


def _say_what_will_happen(run: Run, train_set: ShardSet, val_set: ShardSet | None, ratios: Mapping[str, float]) -> None:
    config = run.config
    for change in run.folder.config_changes:
        console.print(f"[yellow]changed since the last start[/]: {escape(change)}")
    if (parent := run.folder.parent) and parent.step == run.start_step:
        console.print(
            f"another recipe from step {parent.step:,} on: run {run.folder.run_id}, branched off {parent.run_id}",
            markup=False,
        )
    start = f"going on at step {run.start_step:,} of" if run.start_step else "training for"
    draws, sampler = run.steps_per_epoch * config.global_batch_size, config.data.sampler.name
    left = f"{len(train_set) - draws} left over" if sampler == "uniform" else f"{draws:,} draws by {sampler}"
    accelerator = run.accelerator
    console.print(
        f"{run.folder.path}: {start} {counted(run.total_steps, 'step')}, {run.steps_per_epoch:,} an epoch of "
        f"{counted(len(train_set), 'sample')} ({left}); global batch {config.global_batch_size} on {world_size()} x "
        f"{accelerator.device.type}, precision {accelerator.mixed_precision}; "
        + (f"validation on {counted(len(val_set), 'image')}" if val_set else "no validation"),
        markup=False,
    )
    if config.freezes_random_weights:
        console.print(
            f"[yellow]frozen without weights[/]: model.freeze={config.model.freeze} keeps the tower as chance drew it. "
            "Set model.freeze=nothing model.thaw={}, or give it weights."
        )
    figures = ", ".join(f"{name} {ratio:.6f}" for name, ratio in ratios.items())
    console.print(f"gradient proof passed: |gradient| / |one-process gradient|: {figures}")
