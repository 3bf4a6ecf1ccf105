"""Checkpoints of other versions: read with defaults, or refused in one sentence that names the file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save as save_tensors
from signed_files import body_of, sign_checkpoint, with_an_unknown_field, without_each_field

from core.errors import CheckpointError
from trainer.checkpoint.files import read_manifest
from trainer.checkpoint.folder import (
    best_checkpoint,
    load_checkpoint,
    load_latest,
    read_identity,
    save_checkpoint,
)
from trainer.checkpoint.tensor_tree import dump_json
from trainer.checkpoint.weights import read_weights

READERS: list[Callable[[Path], Any]] = [
    read_manifest,
    load_checkpoint,
    read_weights,
    read_identity,
    lambda path: load_latest(path.parent),
    lambda path: best_checkpoint(path.parent),
]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save_checkpoint(
        tmp_path,
        parts={
            "encoder": {"weight": torch.ones(2)},
            "objective": {"logit_scale": torch.ones(())},
            "ema": {"encoder.weight": torch.zeros(2), "learned.logit_scale": torch.zeros(())},
        },
        optimizer_state={"state": {0: {"step": torch.tensor(1.0)}}},
        state={"step": 7, "epoch": 0},
        identity={"model": {"embed_dim": 8}},
        keep_last=1,
        is_best=True,
    )


def read_or_refused(read: Callable[[Path], Any], checkpoint: Path) -> bool:
    """Whether it was read; a refusal is one sentence with the place and a remedy."""
    try:
        read(checkpoint)
    except CheckpointError as error:
        assert str(checkpoint) in str(error) and "another version" in str(error) and "\n" not in str(error)
        assert "Use the version that wrote it" in str(error)
        return False
    return True


def test_a_manifest_without_a_field_is_read_or_refused(checkpoint: Path) -> None:
    path = checkpoint / "manifest.json"
    body = body_of(path, "sha256")
    before = read_manifest(checkpoint)
    needed = {"encoder.safetensors", "optimizer.safetensors", "state.json", "model.json"}
    for place, changed in without_each_field(body):
        path.write_bytes(sign_checkpoint(changed))
        is_read = [read_or_refused(read, checkpoint) for read in READERS]
        if place in (("format_version",), ("step",), ("is_best",)):
            assert all(is_read) and read_manifest(checkpoint).files == before.files
            assert (best_checkpoint(checkpoint.parent) == checkpoint) == (place != ("is_best",))
        elif place == ("files",) or len(place) == 3:
            assert not any(is_read), place
        else:  # a file is not named
            assert load_is_refused(checkpoint, place[1]) == (place[1] in needed)
    for _, changed in with_an_unknown_field(body):
        path.write_bytes(sign_checkpoint(changed))
        if "of_tomorrow" not in changed["files"]:  # there a name is a file's
            assert all(read_or_refused(read, checkpoint) for read in READERS)


def load_is_refused(checkpoint: Path, name: str | int) -> bool:
    try:
        load_checkpoint(checkpoint)
    except CheckpointError as error:
        assert f"has no {name}, so it was written by another version" in str(error)
        return True
    return False


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("state.json", dump_json({"epoch": 0})),
        ("state.json", b"[]"),
        ("state.json", b'{"$tensor": "a"}'),
        ("model.json", b"no json"),
        ("optimizer.safetensors", save_tensors({"a": torch.ones(1)})),
        ("optimizer.safetensors", save_tensors({}, {"tree": '{"$tensor": "a"}'})),
        ("optimizer.safetensors", b"short"),
        ("encoder.safetensors", b"no tensors at all"),
        ("ema.safetensors", b""),
    ],
)
def test_a_file_of_another_form_behind_right_hashes_is_refused_by_name(
    checkpoint: Path, name: str, data: bytes
) -> None:
    (checkpoint / name).write_bytes(data)
    body = body_of(checkpoint / "manifest.json", "sha256")
    body["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (checkpoint / "manifest.json").write_bytes(sign_checkpoint(body))
    assert not read_or_refused(load_checkpoint, checkpoint)
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(checkpoint)
