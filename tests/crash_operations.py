"""The operations that the tests of crashes know. A new one is a value here, and its name in `OPERATIONS`."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from column_folders import add_column
from crash_check import Operation
from fake_encoder import SPEC, expected
from photo_folders import picture, quick_recipe, write_photos
from rich.console import Console
from shard_sets import make_shard_set

from core.columns import column_names
from core.shard_index import IMAGE
from core.shard_set import ShardSet
from core.storage import PARTIAL_PREFIX, sweep_partials
from shard_builder.build import build_shards
from shard_builder.caption_cache import CaptionCache
from shard_builder.engines.processes import ProcessesEngine
from shard_builder.index_tars import index_shards
from shard_builder.writer import _open_cache
from trainer.checkpoint.folder import (
    best_checkpoint,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
    set_aside_after,
)
from trainer.run.folder import flush_events, open_run_folder, read_events, record_event, set_state
from trainer.run.registry import RegistryLine, read_registry, register_run
from trainer.trackers.metrics_csv import MetricsCsv, read_metrics

LETTERS = "ä" * 100  # of two bytes each: most tears of a line are within one
NUM_LABELLED = 8
CAPTIONS = [f"caption number {number}" for number in range(20)]


@contextmanager
def in_this_process() -> Iterator[None]:
    """Let builds work without worker processes, so that one process writes everything."""

    def run(engine: Any, function: Callable[..., Any], tasks: Any, progress: Callable[[int], None]) -> Iterator[Any]:
        for task in tasks:
            yield task, function(task, lambda position: None)

    _open_cache.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProcessesEngine, "run", run)
        patch.setattr(ProcessesEngine, "call", lambda engine, function, *arguments: function(*arguments))
        yield


def samples(folder: Path) -> list[Any] | None:
    """All that a reader of a shard set finds; None where there is no set."""
    if not (folder / "manifest.json").exists():
        return None
    shards = ShardSet.open(str(folder))
    return [(bytes(shards.member(sample, IMAGE)), shards.captions(sample)) for sample in range(len(shards))]


def is_temporary(name: str) -> bool:
    return any(part.startswith(PARTIAL_PREFIX) for part in Path(name).parts)


def build(root: Path) -> None:
    photos = root.parent / "photos"
    listing = photos / "captions.jsonl" if photos.exists() else write_photos(photos, 7)
    recipe = quick_recipe(listing, root / "data" / "set", root / "cache", samples_per_shard=3)
    with in_this_process():
        build_shards(recipe, Console(file=io.StringIO()))


def write_tar(folder: Path, number: int) -> None:
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / f"{number:05d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for row in range(3):
            for extension, data in (("jpg", picture(10 * number + row, (40, 30))), ("txt", b"text %d" % row)):
                info = tarfile.TarInfo(f"{row}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def write_tars(root: Path) -> None:
    for number in range(2):
        write_tar(root / "laion", number)


def index(root: Path) -> None:
    with in_this_process():
        index_shards(str(root / "laion"), size=24, workers=1, console=Console(file=io.StringIO()))


def index_one_and_add_one(root: Path) -> None:
    write_tar(root / "laion", 0)
    index(root)
    write_tar(root / "laion", 1)


def save(root: Path, step: int, is_best: bool = False, keep_last: int = 1) -> None:
    value = torch.full((20, 20), float(step))
    save_checkpoint(
        root / "run" / "checkpoints",
        parts={
            "encoder": {"w": value},
            "objective": {"logit_scale": value[0, 0], "queue": value},
            "ema": {"encoder.w": value, "learned.logit_scale": value[0, 0]},
        },
        optimizer_state={"state": {0: {"m": value}}},
        state={"step": step},
        identity={},
        keep_last=keep_last,
        is_best=is_best,
    )


def save_some(root: Path) -> None:
    """The best one, and two that the next save makes superfluous."""
    save(root, 1, is_best=True)
    for step in (2, 3):
        save(root, step, keep_last=3)


def checkpoints(root: Path) -> list[Any]:
    """Step and the values of every part of the latest and the best one."""
    folder = root / "run" / "checkpoints"
    paths = [latest_checkpoint(folder), best_checkpoint(folder)]
    loaded = [load_checkpoint(path) for path in paths if path]
    return [
        (
            checkpoint.step,
            {
                name: torch.cat([x.flatten() for x in part.values()]).unique().tolist()
                for name, part in checkpoint.parts.items()
            },
        )
        for checkpoint in loaded
    ]


def save_different_ones(root: Path) -> None:
    """Three that all stay."""
    for step in range(1, 4):
        save(root, step, keep_last=3)


def line(number: int, **values: Any) -> RegistryLine:
    return RegistryLine(
        f"{number}", f"run {number}", "running", started=f"2026-01-0{number}", updated="2026-02-02", **values
    )


def register_some(root: Path) -> None:
    for number in (1, 2):
        register_run(root, line(number))


def measure(root: Path) -> None:
    """Go on from the checkpoint of step 2; who opens the run's folder sweeps it."""
    sweep_partials(root)
    metrics = MetricsCsv(root, resumed_from=2)
    metrics.log({"loss": 2.0}, 3, 24)
    metrics.log({"loss": 1.5, "verdict": LETTERS}, 4, 32)  # one more column
    metrics.log({"loss": 1.25, "verdict": LETTERS}, 5, 40)
    metrics.flush()


def measure_before(root: Path) -> None:
    metrics = MetricsCsv(root, resumed_from=None)
    for step in range(1, 4):
        metrics.log({"loss": 9.0 - step}, step, 8 * step)
    with open(root / "metrics.csv", "ab") as file:
        file.write(b"4,32,17")


def measured(root: Path) -> list[Any]:
    return [(row.step, row.metrics) for row in read_metrics(root / "metrics.csv")]


def run(root: Path) -> None:
    """A run's first start; or its next one, which goes on."""
    with open_run_folder(root / "runs" / "a", {"lr": 0.5}, environment={"commit": "0"}, resume="auto") as folder:
        record_event(folder.path, "damaged sample", 1, place=LETTERS)
        record_event(folder.path, "epoch covered", 2, epoch=0)
        set_state(folder, "stopped")


def run_state(root: Path) -> tuple[bool, list[str]]:
    folder = root / "runs" / "a"
    state = json.loads((folder / "run.json").read_text())["state"] if (folder / "run.json").exists() else ""
    return state == "stopped", [event["event"] for event in read_events(folder)]


def start(root: Path) -> None:
    """A run's first start with the weights of another one, up to its first checkpoint; or its next start."""
    with open_run_folder(root / "run", {"lr": 0.5}, environment={"commit": "0"}, resume="auto") as folder:
        if latest_checkpoint(folder.checkpoints) is None:
            record_event(folder.path, "started from", 0, path=LETTERS, parts={"tower": 8}, reason="start_from=other")
        flush_events(folder.path)
        save(root, 1)


def beginning(root: Path) -> tuple[bool, int]:
    """Whether the journal says what the run began with, and the step of its latest checkpoint."""
    latest = latest_checkpoint(root / "run" / "checkpoints")
    is_told = any(event["event"] == "started from" for event in read_events(root / "run"))
    return is_told, load_checkpoint(latest).step if latest else 0


def publish_column(root: Path) -> None:
    url = str(root / "set")
    if "labels" not in column_names(url):
        add_column(url, "labels", np.arange(NUM_LABELLED, dtype="<i4") % 2, classes=("a", "b"))


def columns(root: Path) -> dict[str, list[int]]:
    """The columns that a reader is told of, and their values."""
    url = str(root / "set")
    shards = ShardSet.open(url)
    return {name: shards.column(name).rows(np.arange(NUM_LABELLED)).tolist() for name in column_names(url)}


BUILD = Operation(
    "build",
    lambda root: None,
    build,
    lambda root: samples(root / "data" / "set"),
    # A lock whose owner is gone binds nobody; who locks the column again removes it.
    may_stay=lambda name: is_temporary(name) or name.endswith("/.labels.lock"),
)
ADOPT = Operation("adopt", write_tars, index, lambda root: samples(root / "laion"))
ADOPT_AGAIN = Operation("adopt one more", index_one_and_add_one, index, lambda root: samples(root / "laion"))
CAPTION_CACHE = Operation(
    "caption cache",
    lambda root: CaptionCache(root, SPEC).add(CAPTIONS[:5], expected(CAPTIONS[:5])),
    lambda root: CaptionCache(root, SPEC).add(CAPTIONS, expected(CAPTIONS)),
    lambda root: len(CaptionCache(root, SPEC).missing(CAPTIONS)),
    may_stay=is_temporary,
)
CHECKPOINT = Operation("checkpoint", save_some, lambda root: save(root, 4), checkpoints)
FIRST_CHECKPOINT = Operation("first checkpoint", lambda root: None, lambda root: save(root, 1), checkpoints)
SET_ASIDE = Operation(
    "set aside",
    save_different_ones,
    lambda root: set_aside_after(root / "run" / "checkpoints", 1) and None,
    checkpoints,
    may_find=lambda found, old, new: found[0][0] in (1, 2, 3),  # one after the other
)
REGISTRY = Operation("registry", register_some, lambda root: register_run(root, line(2, step=9)), read_registry)
METRICS = Operation(
    "metrics",
    measure_before,
    measure,
    measured,
    # Lines count from the flush on; until then some of them may be there, from the first.
    may_find=lambda found, old, new: found == old or (len(found) >= 2 and found == new[: len(found)]),
    same_bytes=False,
)
RUN = Operation(
    "run folder",
    lambda root: None,
    run,
    run_state,
    may_find=lambda found, old, new: found[1] == new[1][: len(found[1])],
    ends_right=lambda found, new: found[0] and found[1][-3:] == new[1][-3:],
    same_bytes=False,
)
START = Operation(
    "start from",
    lambda root: None,
    start,
    beginning,
    may_find=lambda found, old, new: found[0] or not found[1],  # no checkpoint whose beginning is not told
    same_bytes=False,
)
COLUMN = Operation(
    "column",
    lambda root: make_shard_set(root / "set", NUM_LABELLED, samples_per_shard=3) and None,
    publish_column,
    columns,
    may_stay=is_temporary,  # who publishes a column for people sweeps its folder
)

OPERATIONS = (
    BUILD, ADOPT, ADOPT_AGAIN, CAPTION_CACHE, CHECKPOINT, FIRST_CHECKPOINT, SET_ASIDE, REGISTRY, METRICS, RUN, START,
    COLUMN,
)  # fmt: skip
