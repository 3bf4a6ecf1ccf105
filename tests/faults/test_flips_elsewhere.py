"""The same damages as in test_flips.py, to what is no shard set: found before use, and named.

checkpoints         whoever loads them, file by file, before the first tensor is made
cached embeddings   the build that opens the segment
saved features      whoever loads them
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from damages import MISSING, SWAP, Damage, Finder, damaged, error_of, files_of, unfound
from fake_encoder import SPEC, expected

from core.errors import CheckpointError
from eval.features import Extracted, load_features, save_features
from eval.metrics import FeatureSet
from shard_builder.caption_cache import CaptionCache
from trainer.checkpoint import files as checkpoint_files
from trainer.checkpoint.folder import load_latest, save_checkpoint
from trainer.checkpoint.weights import Weights, read_weights

FULL = pytest.mark.faults


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    """Two checkpoints as a run leaves them."""
    for step in (1, 2):
        weights = {"weight": torch.full((4, 4), float(step)), "count": torch.tensor(step)}
        save_checkpoint(
            tmp_path / "checkpoints",
            parts={
                "encoder": weights,
                "objective": {"queue": torch.full((4, 2), float(step))},
                "ema": {f"encoder.{name}": value + 1 for name, value in weights.items()},
            },
            optimizer_state={"state": {0: {"step": torch.tensor(float(step))}}, "param_groups": [{"lr": 0.1}]},
            state={"step": step, "epoch": 0},
            identity={"model": {"tower": "resnet50"}, "trained": step},
            keep_last=2,
            is_best=step == 1,
        )
    return tmp_path / "checkpoints"


@pytest.mark.parametrize("count", [100, pytest.param(500, marks=FULL)])
def test_damage_to_a_checkpoint_is_found(checkpoints: Path, count: int, fault_seed: int) -> None:
    latest = checkpoints / "step-00000002"
    others = [file for file in files_of(checkpoints) if file.parent != latest]
    assert unfound([*files_of(latest), *others], count, fault_seed, in_checkpoints(checkpoints)) == []


@pytest.mark.parametrize("count", [20, pytest.param(100, marks=FULL)])
def test_damage_to_cached_embeddings_is_found(tmp_path: Path, count: int, fault_seed: int) -> None:
    captions = [f"caption {number}" for number in range(50)]
    for some in (captions[:20], captions[20:]):
        CaptionCache(tmp_path, SPEC).add(some, expected(some))
    assert unfound(files_of(tmp_path), count, fault_seed, in_caption_cache(tmp_path, captions)) == []


@pytest.mark.parametrize("count", [20, pytest.param(100, marks=FULL)])
def test_damage_to_saved_features_is_found(tmp_path: Path, count: int, fault_seed: int) -> None:
    for turn, name in enumerate("ab"):
        rows = np.roll(np.eye(6, 8, dtype=np.float32), turn, axis=1)
        features = FeatureSet(rows, rows, np.arange(6))
        save_features(Extracted(features, np.arange(6), np.zeros((6, 2), int), 5.0), tmp_path / name, name, "set")

    def find(damage: Damage) -> str | None:
        with damaged(damage):
            message = error_of(lambda: load_features(damage.file, damage.file.name, "set"))
            return None if message and str(damage.file) in message else f"loading says {message}"

    assert unfound(files_of(tmp_path), count, fault_seed, find) == []


def test_without_hashes_of_checkpoint_files_this_suite_turns_red(
    checkpoints: Path, fault_seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = in_checkpoints(checkpoints)
    monkeypatch.setattr(checkpoint_files, "read_verified", lambda path, name, entry: (path / name).read_bytes())
    monkeypatch.setattr("trainer.checkpoint.weights.read_verified", checkpoint_files.read_verified)
    missed = unfound(files_of(checkpoints / "step-00000002"), 60, fault_seed, find)
    assert any("stumbled" not in sentence for sentence in missed), missed


def in_checkpoints(folder: Path) -> Finder:
    """Load the latest checkpoint, and the weights of both, as resuming and evaluation do."""
    whole = {path: read_weights(path) for path in sorted(folder.iterdir())}
    assert load_latest(folder) is not None

    def find(damage: Damage) -> str | None:
        with damaged(damage):
            message = error_of(lambda: load_latest(folder))
            touched = {path.parent for path in (damage.file, damage.other) if path}
            if folder / "step-00000002" in touched and message is None:
                return "resuming found nothing"
            if message and not any(str(path) in message for path in touched):
                return f"the message names no file of the checkpoint: {message}"
            if message and damage.kind != SWAP and str(damage.file) not in message:
                return f"the message does not name the file: {message}"
            for path, sound in whole.items():
                if not same_or_refused(path, sound):
                    return "evaluation used what was not written"
        return None

    return find


def same_or_refused(path: Path, sound: Weights) -> bool:
    try:
        found = read_weights(path)
    except CheckpointError:
        return True
    if (found.identity, found.fingerprint) != (sound.identity, sound.fingerprint):
        return False
    return all(torch.equal(found.encoder[name], tensor) for name, tensor in sound.encoder.items())


def in_caption_cache(folder: Path, captions: list[str]) -> Finder:
    """Open the cache as a build does, and look everything up."""

    def find(damage: Damage) -> str | None:
        with damaged(damage):
            cache = CaptionCache(folder, SPEC)
            message = error_of(lambda: cache.missing(captions))
            if damage.kind == MISSING:
                return None if message is None and cache.missing(captions) else "nothing is missing"
            if message is None or not any(name in message for name in damage.names):
                return f"opening says {message}"
        return None

    return find
