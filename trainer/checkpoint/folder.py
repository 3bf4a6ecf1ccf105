"""Checkpoints: a folder per step, published whole, hashed file by file, without pickle.

    checkpoints/step-00000100/
      encoder.safetensors    towers and heads
      objective.safetensors  learned scalars, and what the objective keeps from step to step
      ema.safetensors        the averages of both, where there are any
      optimizer.safetensors  moments and settings
      state.json      where the run stands: step, epoch, random generators, scaler, ledger, best metric, ...
      model.json      what the weights are: model, embed_dim, text encoder, image size, mean, std, config
      manifest.json   size and sha256 of every file, and of itself

Finding one imports no torch: a command line says at once that none is there.

A folder that has its name is whole (it was renamed when it was). `latest` is the highest step; `best` is the newest
one whose manifest says so: no pointer file can be stale or half written.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import CheckpointError
from core.storage import PARTIAL_PREFIX, publish_folder, sweep_partials
from core.sync import sync
from trainer.checkpoint.files import (
    MANIFEST,
    REMEDY,
    CheckpointManifest,
    damage,
    decoded,
    forget_cached_pages,
    manifest_bytes,
    read_manifest,
    read_verified,
    write_files,
)

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.checkpoint.tensor_tree import Pieces

ENCODER, OBJECTIVE, EMA, OPTIMIZER = "encoder", "objective", "ema", "optimizer"  # parts: a file each
STATE, IDENTITY, SUFFIX = "state.json", "model.json", ".safetensors"
STORED_SIZE = "stored_image_size"  # in IDENTITY: pixels of the training set's pictures, before they become the tower's
OLDER_MODEL = "model.safetensors"  # what older versions called encoder and temperature in one file
_STEP_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint, on the CPU."""

    path: Path
    parts: dict[str, dict[str, Tensor]]  # ENCODER, OBJECTIVE, EMA ...; the optimizer's is a tree of its own
    optimizer_state: dict[str, Any]
    state: dict[str, Any]
    identity: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.state["step"])


def save_checkpoint(
    folder: Path,
    *,
    parts: Mapping[str, Mapping[str, Tensor]],
    optimizer_state: Mapping[str, Any],
    state: Mapping[str, Any],
    identity: Mapping[str, Any],
    keep_last: int,
    is_best: bool,
) -> Path:
    """Publish `folder/step-XXXXXXXX`, read it back from the disk, and only then remove older ones.

    One process calls it, with the random states of all ranks already gathered into `state`. A step that is
    saved already is left as it is; the newest `keep_last` and the best one stay.

    Raises:
        StorageError: the disk is full or cannot be written; what was there before is untouched.
        CheckpointError: what was written reads back differently; what was there before is untouched.
    """
    from trainer.checkpoint.tensor_tree import dump_json, encode_tensors, encode_tree

    target = folder / step_name(int(state["step"]))
    sweep_partials(folder)
    if target.exists():
        if not damage(target):
            _remove_old(folder, keep_last)  # killed before it came to that
            return target
        _set_aside(target)
    files: dict[str, Pieces] = {
        **{part_file(name): encode_tensors(tensors) for name, tensors in parts.items()},
        part_file(OPTIMIZER): encode_tree(dict(optimizer_state)),
        STATE: [dump_json(dict(state))],
        IDENTITY: [dump_json(dict(identity))],
    }
    files[MANIFEST] = [manifest_bytes(files, int(state["step"]), is_best)]
    publish_folder(lambda partial: write_files(partial, files), target)
    forget_cached_pages(target)
    if found := damage(target):
        _set_aside(target)
        raise CheckpointError(f"{found} It was written a moment ago: the disk or its driver is failing; check it.")
    _remove_old(folder, keep_last)
    return target


def load_checkpoint(path: Path, expected_identity: Mapping[str, Any] | None = None) -> Checkpoint:
    """Everything in one checkpoint, after every hash was checked.

    Args:
        expected_identity: values that the checkpoint's `model.json` must have under the same keys.

    Raises:
        CheckpointError: a file is missing, cut short or altered (named), or the checkpoint is of another model
            (the fields that differ are named with both values).
    """
    from trainer.checkpoint.tensor_tree import decode_tensors, decode_tree, parse_json

    manifest = read_manifest(path)
    expect_parts(path, manifest)
    for name in (part_file(ENCODER), part_file(OPTIMIZER), STATE, IDENTITY):
        manifest.entry(path, name)
    files = {name: read_verified(path, name, entry) for name, entry in manifest.files.items()}
    identity = decoded(path / IDENTITY, parse_json, files[IDENTITY])
    if expected_identity is not None:
        check_identity(identity, expected_identity, path)
    state = decoded(path / STATE, parse_json, files[STATE])
    if not isinstance(state, dict) or "step" not in state:
        raise CheckpointError(f"{path / STATE}: has no 'step', so it was written by another version. {REMEDY}")
    return Checkpoint(
        path=path,
        parts={
            name.removesuffix(SUFFIX): decoded(path / name, decode_tensors, data)
            for name, data in files.items()
            if name.endswith(SUFFIX) and name != part_file(OPTIMIZER)
        },
        optimizer_state=decoded(path / part_file(OPTIMIZER), decode_tree, files[part_file(OPTIMIZER)]),
        state=state,
        identity=identity,
    )


def load_latest(folder: Path, expected_identity: Mapping[str, Any] | None = None) -> Checkpoint | None:
    """The newest checkpoint, or None where there is none yet; a damaged one is never stepped over silently.

    Raises:
        CheckpointError: as `load_checkpoint`; for damage it also names the next older whole checkpoint.
    """
    path = latest_checkpoint(folder)
    if path is None:
        return None
    if found := damage(path):
        older = [other for other in _all_checkpoints(folder)[:-1] if not damage(other)]
        way_out = (
            f"The newest whole checkpoint before it is {older[-1].name}: continue with resume={older[-1]}"
            if older
            else "There is no older whole checkpoint: start again in another run_dir"
        )
        raise CheckpointError(f"{found} {way_out}.")
    return load_checkpoint(path, expected_identity)


def read_identity(path: Path) -> dict[str, Any]:
    """The verified `model.json`: enough to build the model before its weights are read."""
    from trainer.checkpoint.tensor_tree import parse_json

    data = read_verified(path, IDENTITY, read_manifest(path).entry(path, IDENTITY))
    identity: dict[str, Any] = decoded(path / IDENTITY, parse_json, data)
    return identity


def resolve_checkpoint(path: Path) -> Path:
    """The checkpoint folder that a person means by a run folder, `RUN/best`, `RUN/latest` or the folder itself.

    A run folder means its best checkpoint, or the latest where none is marked best.

    Raises:
        CheckpointError: there is none.
    """
    if _STEP_NAME.fullmatch(path.name) and path.is_dir():
        return path
    run, which = (path.parent, path.name) if path.name in ("best", "latest") else (path, None)
    folder = run if run.name == "checkpoints" else run / "checkpoints"
    found = None if which == "latest" else best_checkpoint(folder)
    if found is None and which != "best":
        found = latest_checkpoint(folder)
    if found is None:
        raise CheckpointError(
            f"{path}: no {which + ' ' if which else ''}checkpoint there. Name a run folder that has one."
        )
    return found


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest step."""
    return checkpoints[-1] if (checkpoints := _all_checkpoints(folder)) else None


def best_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was the best when it was saved."""
    return next((path for path in reversed(_all_checkpoints(folder)) if read_manifest(path).is_best), None)


def set_aside_after(folder: Path, step: int) -> list[Path]:
    """Rename the checkpoints after `step`, so that a run continued from `step` does not meet them; the new names."""
    later = [path for path in _all_checkpoints(folder) if _step_of(path) > step]
    return [_set_aside(path) for path in later]


def check_identity(found: Mapping[str, Any], expected: Mapping[str, Any], path: Path) -> None:
    """Raise CheckpointError naming the first fields of `expected` that `found` does not have, with both values."""
    wanted = dict(_flat(expected))
    have = dict(_flat({key: found[key] for key in expected if key in found}))
    if "model.image_size" in wanted and "image.size" in have:  # an older checkpoint says it of the pictures alone
        have.setdefault("model.image_size", have["image.size"])
    names = [*wanted, *(name for name in have if name not in wanted)]
    differing = [name for name in names if wanted.get(name, "absent") != have.get(name, "absent")]
    if differing:
        fields = "; ".join(
            f"{n} is {have.get(n, 'absent')}, {wanted.get(n, 'absent')} is needed" for n in differing[:3]
        )
        more = f" (and {len(differing) - 3} more fields)" if len(differing) > 3 else ""
        raise CheckpointError(
            f"{path}: checkpoint of another model: {fields}{more}. Use the recipe it was trained with."
        )


def part_file(name: str) -> str:
    """The file of a part."""
    return name + SUFFIX


def expect_parts(path: Path, manifest: CheckpointManifest) -> None:
    """Raise where a version before named parts wrote the checkpoint."""
    if OLDER_MODEL in manifest.files:
        raise CheckpointError(
            f"{path}: was written before checkpoints had an encoder and an objective, so a run cannot go on from it. "
            f"Evaluate it as it is, or start from its weights in another run_dir: start_from={path}."
        )


def step_name(step: int) -> str:
    """The folder name of a step's checkpoint."""
    return f"step-{step:08d}"


def _all_checkpoints(folder: Path) -> list[Path]:
    paths = [path for path in folder.glob("step-*") if _STEP_NAME.fullmatch(path.name)]
    return sorted(paths, key=_step_of)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _remove_old(folder: Path, keep_last: int) -> None:
    checkpoints = _all_checkpoints(folder)
    readable = {path: marks for path in checkpoints if (marks := _marks(path)) is not None}
    best = next((path for path in reversed(checkpoints) if readable.get(path)), None)
    # A damaged one stays for a person to look at.
    old = [path for path in checkpoints[: -max(keep_last, 1)] if path != best and path in readable]
    if not old:
        return
    partials = [path.rename(path.with_name(f"{PARTIAL_PREFIX}{path.name}")) for path in old]
    sync(folder)  # before a file goes: killed while deleting, they must not pass for checkpoints
    for partial in partials:
        shutil.rmtree(partial)


def _marks(path: Path) -> bool | None:
    try:
        return read_manifest(path).is_best
    except CheckpointError:
        return None


def _set_aside(path: Path) -> Path:
    number = 0
    while (target := path.with_name(f"set-aside-{number}-{path.name}")).exists():
        number += 1
    os.rename(path, target)
    sync(path.parent)  # a run that goes on from an older one must not meet it again
    return target


def _flat(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{place}.{key}" if place else str(key))
    else:
        # Identities written by a recipe hold tuples, the same read from elsewhere lists: they mean the same.
        yield place, list(value) if isinstance(value, tuple) else value
