"""The power fails at any moment of anything that writes: what is found is old or new, whole, and it goes on from there.

Each operation is recorded once: every write, sync and change of a name. Then what a disk may hold before and after each
of them is laid out (`tests/crash_states.py`), read, and gone on from. The operations are in
`tests/crash_operations.py`. The short form tries a few states of each, the long one all.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from crash_check import Operation, crashes
from crash_operations import BUILD, CHECKPOINT, FIRST_CHECKPOINT, OPERATIONS, REGISTRY
from crash_recorder import recorded
from crash_states import crash_states

from core.manifest import save_manifest
from core.storage import PARTIAL_PREFIX, join, publish_folder
from core.sync import sync

ALL = 10**6


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
@pytest.mark.parametrize(
    "at_most", [35, pytest.param(ALL, marks=[pytest.mark.faults, pytest.mark.timeout(900)])], ids=["some", "all"]
)
def test_old_or_new_is_found_after_a_crash_and_the_next_start_goes_on(
    tmp_path: Path,
    operation: Operation,
    at_most: int,
    fault_seed: int,
    record_property: Callable[[str, object], None],
) -> None:
    account = crashes(operation, tmp_path / "disk", fault_seed, at_most)
    record_property("crashes", (str(account), account.num_tried))
    assert account.complaints == []


@pytest.mark.faults
def test_there_are_two_thousand_different_crashes(tmp_path: Path, fault_seed: int) -> None:
    count = 0
    for operation in OPERATIONS:
        root = tmp_path / operation.name / "disk"
        root.mkdir(parents=True)
        operation.prepare(root)
        with recorded(root) as recording:
            operation.act(root)
        count += len(crash_states(recording, fault_seed))
    assert count >= 2000


def sync_files_only(path: Path) -> None:
    if not path.is_dir():
        sync(path)


def sync_folders_only(path: Path) -> None:
    if path.is_dir():
        sync(path)


def write_in_place(data: bytes, target: Path) -> None:
    target.write_bytes(data)
    sync(target)


def remove_before_saving(fill: Callable[[Path], None], target: Path) -> None:
    for path in target.parent.glob("step-*"):
        path.rename(path.with_name(f"{PARTIAL_PREFIX}{path.name}"))
    publish_folder(fill, target)


def make_folder_without_sync(path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)


def save_manifest_before_a_shard(manifest: Any, url: str) -> None:
    name = manifest.shards[-1].name
    os.rename(join(url, name), join(url, "waiting"))
    save_manifest(manifest, url)
    os.rename(join(url, "waiting"), join(url, name))
    sync(Path(url))


@pytest.mark.parametrize(
    ("place", "defect", "operation", "complaint"),
    [
        ("core.storage.sync", sync_files_only, REGISTRY, "done and lost"),
        ("core.storage.sync", sync_files_only, FIRST_CHECKPOINT, "done and lost"),
        ("core.storage.sync", sync_folders_only, REGISTRY, "neither old nor new"),
        ("core.storage.sync", sync_folders_only, CHECKPOINT, "the reader fails: CheckpointError"),
        ("core.storage.make_folder", make_folder_without_sync, FIRST_CHECKPOINT, "done and lost"),
        ("trainer.run.registry.publish_bytes", write_in_place, REGISTRY, "neither old nor new"),
        ("trainer.checkpoint.folder.publish_folder", remove_before_saving, CHECKPOINT, "neither old nor new"),
        ("trainer.checkpoint.folder.sync", lambda folder: None, CHECKPOINT, "the reader fails: CheckpointError"),
        pytest.param(
            "shard_builder.build.save_manifest", save_manifest_before_a_shard, BUILD, "the reader fails: DamagedError",
            marks=pytest.mark.faults,
        ),
    ],
)  # fmt: skip
def test_with_a_planted_defect_this_suite_turns_red(
    tmp_path: Path,
    place: str,
    defect: Callable[..., None],
    operation: Operation,
    complaint: str,
    fault_seed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def prepare(root: Path) -> None:  # what was there before is sound
        operation.prepare(root)
        monkeypatch.setattr(place, defect)

    account = crashes(replace(operation, prepare=prepare), tmp_path / "disk", fault_seed, stop_at=complaint)
    assert [found for found in account.complaints if complaint in found], account.complaints
