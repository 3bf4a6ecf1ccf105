"""Build a shard set from a recipe: `shardclip build configs/build/coco2014_train.yaml`.

The story: read the source, plan the shards, embed the captions that no build has embedded before, let the engine's
workers write the shards, publish the manifest. An unfinished build, killed or refused, goes on where it was; a finished
one is left alone, but for what it has lost of its shards and labels, which is written again. That a tar of the right
size is damaged is only seen where every byte is read: `check_bytes`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from core import parts
from core.columns import LABELS, column_url
from core.errors import DataError
from core.heif import HEIC, HEIC_REMEDY
from core.image import imaging_library
from core.locks import lock
from core.manifest import Manifest, ShardEntry, TextEncoderSpec, index_name, save_manifest
from core.places import SHARD_SET, expect_folder_of_ours, expect_no_common_folder
from core.shard_set import ShardSet
from core.spoken import counted
from core.storage import is_local, join, local, publish_bytes, remove
from shard_builder.build_state import close_state, finished_results, is_begun, open_state, save_build, save_result
from shard_builder.caption_embeddings import embed_with_progress, text_encoder_spec
from shard_builder.columns.labels import lacks_labels, publish_labels
from shard_builder.config import BuildConfig
from shard_builder.contact_sheet import CONTACT_SHEET_NAME, contact_sheet
from shard_builder.cut_captions import CUT_NAME, cut_captions, cut_lines, write_cut
from shard_builder.engines import ENGINES
from shard_builder.engines.processes import ProcessesEngine
from shard_builder.fingerprint import fingerprint_of, inputs_hash, recipe_of
from shard_builder.inputs import Inputs, read_inputs
from shard_builder.layout import ShardPlan, plan_shards
from shard_builder.older_inputs import with_heic_left_out
from shard_builder.progress import progress_bar, spoken_bytes, spoken_seconds, summary_table
from shard_builder.records import Record, Skip
from shard_builder.rejected import REJECTED_NAME, count_by_reason, write_rejected
from shard_builder.repair import lost_shards, repair
from shard_builder.writer import ShardResult, ShardTask, write_shard

_UNSUPPORTED = "plain Pillow reads more formats: engine.pillow_simd=false"


def build_shards(config: BuildConfig, console: Console | None = None) -> Manifest:
    """Build the set that the recipe describes, or what is left of it to build; returns its manifest.

    Raises:
        ConfigError: `out` is no place for a set (`core.places`).
        ManifestError: the folder holds another recipe's set.
        DataError: more than `max_skipped` of the inputs cannot be used.
        StorageError: another build is at work there, or the disk is full.
    """
    console = console or Console()
    started = time.monotonic()
    expect_places(config)
    engine = parts.build(ENGINES, config.engine, "engine", workers=config.num_workers)
    with ExitStack() as held:
        inputs = read_inputs(config.source, config.split)
        console.print(
            f"{len(inputs.records):,} images, {len(inputs.captions):,} distinct captions -> {config.out}", markup=False
        )
        encoder = text_encoder_spec(config.text_encoder)
        # Only now: it makes the folder, and a mistake in the recipe leaves none.
        held.enter_context(lock(_lock_path(config), f"a build of {config.out}"))
        held.enter_context(engine)  # left before the lock: no worker writes into a folder that is another build's
        library = engine.call(imaging_library)
        say_which_library(library, console)
        inputs, recipe = _as_begun(config, inputs, library, encoder, console)
        finished = open_state(config.out, recipe)
        if finished:
            _mend(config, encoder, inputs, finished, engine, console)
            return finished
        _expect_few_skips(inputs.skipped, inputs.num_inputs, config)

        embed_with_progress(
            config.text_encoder,
            encoder,
            inputs.captions,
            config.caption_cache,
            config.text_batch_size,
            partial(progress_bar, console),
        )
        plans = plan_shards(inputs.records, config.split, config.samples_per_shard, config.seed)
        hashes = _input_hashes(inputs, plans)
        results = _worth_keeping(config, inputs, finished_results(config.out, plans, hashes), console)
        rate = _write_shards(config, encoder, inputs, plans, results, hashes, engine, console)

        ordered = [results[plan.name] for plan in plans]
        cut = cut_captions(config.text_encoder, inputs.captions)
        cut_listed = cut_lines(_used_records(inputs, ordered), cut) if cut else []
        manifest = _manifest(config, encoder, inputs, ordered, fingerprint_of(recipe))
        manifest = replace(
            manifest, fingerprint=_opened(config, manifest).fingerprint, num_cut_captions=len(cut_listed)
        )
        files = _publish_extras(config, manifest, _all_skips(inputs, ordered), console)
        if cut_listed:
            files[CUT_NAME] = write_cut(config.out, cut_listed)
        save_build(config.out, recipe, files)
        save_manifest(manifest, config.out)
        close_state(config.out)
    console.print(summary_table(manifest, _figures(config, ordered, rate, time.monotonic() - started)))
    if num_heic := sum(HEIC in skip.detail for result in ordered for skip in result.skipped):
        console.print(
            f"[yellow]{num_heic:,} HEIC pictures are left out[/]. {escape(HEIC_REMEDY)}, and build into another out."
        )
    return manifest


def expect_places(config: BuildConfig) -> None:
    """Raise where the set or the cache must not be written: a blank path, `/`, the home folder, a folder of photos.

    Raises:
        ConfigError: in one sentence.
    """
    expect_folder_of_ours(config.out, "out", SHARD_SET)
    expect_no_common_folder(config.cache_dir.expanduser(), "cache_dir")


def say_which_library(library: str, console: Console) -> None:
    """Say so when images are resized by the slower library."""
    if not library.startswith("pillow-simd"):
        console.print(
            f"[yellow]Images are resized by {escape(library)}[/]: pillow-simd, about twice as fast, is not installed "
            "(`make setup` tries to compile it; it needs a C compiler and the headers of libjpeg and zlib)."
        )


def _as_begun(
    config: BuildConfig, inputs: Inputs, library: str, encoder: TextEncoderSpec, console: Console
) -> tuple[Inputs, dict[str, Any]]:
    """The inputs and their recipe: as an older version listed them, where it has begun or finished this very set."""

    def recipe_for(found: Inputs) -> dict[str, Any]:
        return recipe_of(_settings(config), found.records, found.skipped, found.image_bytes, library, encoder)

    older = with_heic_left_out(inputs)
    if older is None or not is_begun(config.out, recipe := recipe_for(older)):
        return inputs, recipe_for(inputs)
    console.print(
        f"[yellow]{len(inputs.records) - len(older.records):,} HEIC pictures stay left out[/]: this set was begun by a "
        "version that did not read them. Build into another out to have them."
    )
    return older, recipe


def _settings(config: BuildConfig) -> dict[str, Any]:
    """What of the recipe decides the bytes; workers, engine, cache and limits do not."""
    return {
        "split": config.split,
        "image": asdict(config.image),
        "samples_per_shard": config.samples_per_shard,
        "seed": config.seed,
    }


def _input_hashes(inputs: Inputs, plans: Sequence[ShardPlan]) -> dict[str, str]:
    """Shard name -> hash of what it is made of."""
    sizes = {(r.source, r.image_id): size for r, size in zip(inputs.records, inputs.image_bytes, strict=True)}
    return {plan.name: inputs_hash(plan.records, [sizes[r.source, r.image_id] for r in plan.records]) for plan in plans}


def _worth_keeping(
    config: BuildConfig, inputs: Inputs, results: dict[str, ShardResult], console: Console
) -> dict[str, ShardResult]:
    """The finished shards; where too many pictures are left out, without those that left some out.

    What was wrong may be mended by now (a picture of the same size, HEIC that can be read); the rest is counted again.
    """
    if not _are_too_many(_all_skips(inputs, results.values()), inputs.num_inputs, config):
        return results
    kept = {name: result for name, result in results.items() if not result.skipped}
    again = counted(len(results) - len(kept), "finished shard")
    console.print(f"{again} left out more than max_skipped allows: written again, in case the pictures are mended.")
    return kept


def _write_shards(
    config: BuildConfig,
    encoder: TextEncoderSpec,
    inputs: Inputs,
    plans: Sequence[ShardPlan],
    results: dict[str, ShardResult],
    hashes: Mapping[str, str],
    engine: ProcessesEngine,
    console: Console,
) -> float:
    """Let the engine write the shards that `results` lacks, and add them to it; returns images/s (0: none)."""
    started = time.monotonic()
    missing = [plan for plan in plans if plan.name not in results]
    done = len(inputs.records) - sum(len(plan.records) for plan in missing)
    if results:
        console.print(
            f"Going on with an unfinished build: {len(results):,} of {len(plans):,} shards are finished and intact."
        )
    tasks = [_task(config, plan, encoder) for plan in missing]
    with progress_bar(console, "images", total=len(inputs.records), done=done) as show:
        for task, result in engine.run(write_shard, tasks, lambda position: show(done + position)):
            result = replace(result, inputs=hashes[task.name])
            if result.entry is None:  # of what it was before its pictures changed
                for name in (task.name, index_name(task.name)):
                    remove(join(config.out, name))
            save_result(config.out, task.name, result)
            results[task.name] = result
            _expect_few_skips(_all_skips(inputs, results.values()), inputs.num_inputs, config)
    return (len(inputs.records) - done) / (time.monotonic() - started)


def _task(config: BuildConfig, plan: ShardPlan, encoder: TextEncoderSpec) -> ShardTask:
    return ShardTask(plan, config.out, config.image.spec, config.image.max_pixels, config.caption_cache, encoder)


def _mend(
    config: BuildConfig,
    encoder: TextEncoderSpec,
    inputs: Inputs,
    finished: Manifest,
    engine: ProcessesEngine,
    console: Console,
) -> None:
    """Write again what a finished set of this recipe has lost; say that nothing is to be done where it is whole."""
    lost = lost_shards(config.out, finished, config.check_bytes, console)
    if lost:
        _mend_shards(config, encoder, inputs, finished, lost, engine, console)
    if has_lost_labels := lacks_labels(shard_set := _opened(config, finished)):
        publish_labels(shard_set, config.cache_dir.expanduser(), console)
        console.print(f"[green]repaired[/]: {escape(column_url(config.out, LABELS))} is there again.")
    if not lost and not has_lost_labels:
        by = "every byte" if config.check_bytes else "sizes and indexes; check_bytes=true reads every byte"
        console.print(
            f"[green]already built[/]: {escape(config.out)} holds exactly this, nothing to do (checked: {by})."
        )


def _mend_shards(
    config: BuildConfig,
    encoder: TextEncoderSpec,
    inputs: Inputs,
    finished: Manifest,
    lost: Sequence[ShardEntry],
    engine: ProcessesEngine,
    console: Console,
) -> None:
    console.print(
        f"[yellow]{len(lost)} of {len(finished.shards)} shards are missing or damaged[/]: writing them again."
    )
    names = {entry.name for entry in lost}
    plans = plan_shards(inputs.records, config.split, config.samples_per_shard, config.seed)
    wanted = [plan for plan in plans if plan.name in names]
    captions = sorted({caption for plan in wanted for record in plan.records for caption in record.captions})
    bar = partial(progress_bar, console)
    embed_with_progress(config.text_encoder, encoder, captions, config.caption_cache, config.text_batch_size, bar)
    tasks = {plan.name: _task(config, plan, encoder) for plan in wanted}
    repair(config.out, tasks, lost, engine, console)
    ShardSet.open(config.out, config.cache_dir.expanduser(), text="")


def _all_skips(inputs: Inputs, results: Iterable[ShardResult]) -> list[Skip]:
    return [*inputs.skipped, *(skip for result in results for skip in result.skipped)]


def _used_records(inputs: Inputs, results: Sequence[ShardResult]) -> list[Record]:
    skipped = {(skip.source, skip.image_id) for result in results for skip in result.skipped}
    return [record for record in inputs.records if (record.source, record.image_id) not in skipped]


def _are_too_many(skipped: Sequence[Skip], num_inputs: int, config: BuildConfig) -> bool:
    return len(skipped) >= num_inputs or len(skipped) / num_inputs > config.max_skipped


def _expect_few_skips(skipped: Sequence[Skip], num_inputs: int, config: BuildConfig) -> None:
    if not _are_too_many(skipped, num_inputs, config):
        return
    share = len(skipped) / num_inputs if num_inputs else 1.0
    write_rejected(config.out, skipped)
    counts = count_by_reason(skipped)
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts.items())
    hints = {HEIC_REMEDY if HEIC in skip.detail else _UNSUPPORTED for skip in skipped if skip.reason == "unsupported"}
    see = f"See {join(config.out, REJECTED_NAME)}" + "".join(f" ({hint})" for hint in sorted(hints))
    source = f"source '{config.source.name}'"
    if len(skipped) == num_inputs:
        raise DataError(f"{source}: none of its {num_inputs:,} inputs can be used ({reasons}). {see}.")
    raise DataError(
        f"{source}: {len(skipped):,} of {num_inputs:,} inputs cannot be used ({reasons}): {share:.1%}, max_skipped is "
        f"{config.max_skipped:.1%}. {see}; mend them, or set max_skipped={math.ceil(share * 100) / 100}, "
        "and start again: it goes on (where pictures come or go, build into another out)."
    )


def _manifest(
    config: BuildConfig, encoder: TextEncoderSpec, inputs: Inputs, results: Sequence[ShardResult], recipe_hash: str
) -> Manifest:
    entries = [result.entry for result in results if result.entry]
    return Manifest(
        split=config.split,
        num_samples=sum(entry.num_samples for entry in entries),
        num_captions=sum(entry.num_captions for entry in entries),
        image=config.image.spec,
        text_encoder=encoder,
        classes=inputs.classes,
        shards=tuple(entries),
        num_inputs=inputs.num_inputs,
        skipped=count_by_reason(_all_skips(inputs, results)),
        build_fingerprint=recipe_hash,
        captions=inputs.captions_from,
    )


def _opened(config: BuildConfig, manifest: Manifest) -> ShardSet:
    # The manifest is not in the folder yet (it comes last), so the set is opened by hand; indexes are checked.
    return ShardSet((config.out,), (manifest,), config.cache_dir.expanduser(), verified=False)


def _publish_extras(
    config: BuildConfig, manifest: Manifest, skipped: Sequence[Skip], console: Console
) -> dict[str, str]:
    """Publish labels (as a column), the listing and the contact sheet; returns name -> sha256 of the latter two."""
    shard_set = _opened(config, manifest)
    if manifest.classes:
        publish_labels(shard_set, config.cache_dir.expanduser(), console)
    sheet = contact_sheet(shard_set, f"{config.source.name}   {config.split}", config.seed)
    return {
        REJECTED_NAME: write_rejected(config.out, skipped),
        CONTACT_SHEET_NAME: publish_bytes(sheet, join(config.out, CONTACT_SHEET_NAME)),
    }


def _figures(config: BuildConfig, results: Sequence[ShardResult], rate: float, seconds: float) -> list[tuple[str, str]]:
    stored = sum(result.entry.bytes for result in results if result.entry)
    writing = f", {rate:,.0f} images/s while writing ({counted(config.num_workers, 'worker')})"
    figures = [
        ("size", f"{spoken_bytes(stored)} (originals {spoken_bytes(sum(r.source_bytes for r in results))})"),
        ("time", spoken_seconds(seconds) + (writing if rate else "")),
        ("look at", join(config.out, CONTACT_SHEET_NAME)),
    ]
    enlarged = sum(result.num_enlarged for result in results)
    if enlarged:
        figures.insert(0, ("enlarged", f"{enlarged:,} originals are smaller than {config.image.size} px"))
    return figures


def _lock_path(config: BuildConfig) -> Path:
    if is_local(config.out):
        return local(config.out) / ".lock"
    # A bucket has no locks: only the builds of this machine are kept apart.
    return config.cache_dir.expanduser() / "locks" / sha256(config.out.encode()).hexdigest()[:16] / "lock"
