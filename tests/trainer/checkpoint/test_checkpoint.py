"""Checkpoints: exact round trips, nothing half written, nothing damaged loaded, nothing good removed; kills: faults."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from core.errors import CheckpointError
from trainer.checkpoint import files as checkpoint_files
from trainer.checkpoint import folder as module
from trainer.checkpoint.files import damage
from trainer.checkpoint.folder import (
    best_checkpoint,
    latest_checkpoint,
    load_checkpoint,
    load_latest,
    read_identity,
    resolve_checkpoint,
    save_checkpoint,
    set_aside_after,
)
from trainer.checkpoint.tensor_tree import Pieces, decode_tree, dump_json, encode_tensors, encode_tree, parse_json
from trainer.run.rng import rng_state, set_rng_state

IDENTITY = {"model": {"tower": "resnet50", "embed_dim": 384}, "image": {"size": 224, "mean": [0.5, 0.4, 0.3]}}


def save(folder: Path, step: int, *, keep_last: int = 100, is_best: bool = False, **given: Any) -> Path:
    values: dict[str, Any] = {
        "parts": {
            "encoder": {"weight": torch.full((4, 4), float(step)), "count": torch.tensor(step)},
            "objective": {"logit_scale": torch.tensor(float(step)), "queue": torch.full((3, 2), float(step))},
        },
        "optimizer_state": {"state": {0: {"step": torch.tensor(float(step))}}, "param_groups": [{"lr": 0.1}]},
        "state": {"step": step, "epoch": 0},
        "identity": IDENTITY,
    }
    return save_checkpoint(folder, **{**values, **given}, keep_last=keep_last, is_best=is_best)


def same(a: Any, b: Any) -> bool:
    """Equal in type, value, bits and strides, all the way down."""
    if isinstance(a, Tensor):
        raw = [x.contiguous().reshape(-1).view(torch.uint8).tolist() if x.dim() else [x.item()] for x in (a, b)]
        return a.dtype == b.dtype and a.shape == b.shape and a.stride() == b.stride() and raw[0] == raw[1]
    if isinstance(a, dict):
        return type(b) is dict and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    return type(a) is type(b) and (a == b or a != a)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int = 0) -> list[float]:
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(steps):
        loss = model(torch.randn(4, 3, 8, 8, generator=generator)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def make_model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(144, 5))
    return model.to(memory_format=torch.channels_last)


OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, betas=(0.9, 0.98)),
    "fused": lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=torch.tensor(1e-2), amsgrad=True, foreach=False, capturable=False),
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
    "plain sgd": lambda p: torch.optim.SGD(p, lr=1e-2),
}


ALL_DTYPES = (
    torch.bool, torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32, torch.int32, torch.uint64,
    torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64,
)  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_tensors_are_written_as_the_safetensors_library_writes_them(seed: int) -> None:
    torch.manual_seed(seed)
    tied = torch.randn(5, 4).T
    tensors = {"tied": tied, "also tied": tied, "scalar": torch.tensor(2.5), "none": torch.empty(0, 3), "ü": tied[::2]}
    for dtype in ALL_DTYPES:
        tensors[f"{dtype}.{seed}"] = torch.randn(seed + 1, 3).mul(50).to(dtype)
    plain = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    assert b"".join(encode_tensors(tensors)) == safetensors.torch.save(plain)
    described = safetensors.torch.save({"a": torch.ones(2)}, {"tree": '{"a": {"$tensor": "a", "strides": [1]}}'})
    assert b"".join(encode_tree({"a": torch.ones(2)})) == described


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_comes_back_bit_for_bit_and_goes_on_as_if_unbroken(name: str, tmp_path: Path) -> None:
    model = make_model()
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer, 3)
    path = save(tmp_path, 3, parts={"encoder": model.state_dict()}, optimizer_state=optimizer.state_dict())
    expected_state = decode_tree(b"".join(encode_tree(optimizer.state_dict())))
    assert same(expected_state, optimizer.state_dict())
    expected = train(model, optimizer, 3, seed=1)

    loaded = load_checkpoint(path)
    assert same(loaded.optimizer_state, expected_state)
    resumed = make_model()
    resumed.load_state_dict(loaded.parts["encoder"])
    resumed_optimizer = OPTIMIZERS[name](resumed.parameters())
    resumed_optimizer.load_state_dict(loaded.optimizer_state)
    assert train(resumed, resumed_optimizer, 3, seed=1) == expected
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), model.parameters()))


def test_state_keeps_python_types() -> None:
    state = {"substituted": {3: 7, 11: 2}, "betas": (0.9, [1, (2,)]), "nan": float("nan"), "inf": float("inf"), "$x": 1,
             "best": np.float64(0.25), "none": None, "text": "ö", "tiny": 5e-324, "flag": True}  # fmt: skip
    assert same(parse_json(dump_json(state)) | {"best": 0.25}, {**state, "best": 0.25})


def test_what_cannot_be_kept_without_pickle_is_named() -> None:
    with pytest.raises(TypeError, match=r"a\.1: a set cannot be saved without pickle"):
        dump_json({"a": [0, {1}]})
    with pytest.raises(TypeError, match="loss: a Tensor"):
        dump_json({"loss": torch.tensor(1.0)})


def test_random_generators_go_on_where_they_were() -> None:
    def draw() -> list[float]:
        return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.randn(1).item()]

    draw()
    state = parse_json(dump_json(rng_state()))
    expected = draw()
    draw()
    set_rng_state(state)
    assert draw() == expected


def test_every_part_has_a_file_of_its_own_and_comes_back(tmp_path: Path) -> None:
    weight, tied = torch.randn(3, 3), torch.randn(2, 2, dtype=torch.float64)
    parts = {
        "encoder": {"a": tied, "b": tied},
        "objective": {"logit_scale": torch.tensor(2.5), "queue": weight.T},
        "ema": {"encoder.a": weight, "learned.logit_scale": torch.tensor(2.0)},
        "teacher": {"half": weight.half()},  # a part that no version knows yet
    }
    path = save(tmp_path, 1, parts=parts)
    files = {"state.json", "model.json", "manifest.json", "optimizer.safetensors"}
    assert {file.name for file in path.iterdir()} == files | {f"{name}.safetensors" for name in parts}
    loaded = load_checkpoint(path)
    assert loaded.parts.keys() == parts.keys() and read_identity(path) == loaded.identity == IDENTITY
    for name, tensors in parts.items():
        assert loaded.parts[name].keys() == tensors.keys()
        for key, tensor in tensors.items():
            assert loaded.parts[name][key].dtype == tensor.dtype and torch.equal(loaded.parts[name][key], tensor)


def test_every_flipped_bit_and_every_shortened_or_missing_file_is_named(tmp_path: Path) -> None:
    path = save(tmp_path, 1, parts={name: {"weight": torch.ones(2)} for name in ("encoder", "objective", "ema")})
    draw = random.Random(0)
    for file in sorted(path.iterdir()):
        whole = file.read_bytes()
        bits = range(len(whole) * 8) if len(whole) < 200 else draw.sample(range(len(whole) * 8), 60)
        for bit in bits:
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            file.write_bytes(damaged)
            with pytest.raises(CheckpointError, match=f"{file.name}: damaged"):
                load_checkpoint(path)
        for size in (0, len(whole) // 2, len(whole) - 1):
            file.write_bytes(whole[:size])
            with pytest.raises(CheckpointError, match=f"{file.name}: damaged"):
                load_checkpoint(path)
        file.unlink()
        with pytest.raises(CheckpointError, match=f"{file.name}: damaged .the file is missing"):
            load_checkpoint(path)
        file.write_bytes(whole)
    load_checkpoint(path)


def test_a_damaged_latest_is_not_stepped_over_and_the_way_out_is_named(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    flip(tmp_path / "step-00000003" / "optimizer.safetensors")
    flip(tmp_path / "step-00000002" / "encoder.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_latest(tmp_path)
    assert "step-00000003/optimizer.safetensors: damaged" in str(caught.value)
    assert f"continue with resume={tmp_path}/step-00000001." in str(caught.value)
    flip(tmp_path / "step-00000001" / "manifest.json")
    with pytest.raises(CheckpointError, match="no older whole checkpoint"):
        load_latest(tmp_path)


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


def test_a_checkpoint_of_another_model_is_refused_with_both_values(tmp_path: Path) -> None:
    path = save(tmp_path, 1, identity={**IDENTITY, "config": {"lr": 0.1}})
    load_checkpoint(path, IDENTITY)  # fields that were not asked about do not matter
    other = {"model": {"tower": "resnet18", "embed_dim": 512}, "image": IDENTITY["image"]}
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, other)
    assert "another model: model.tower is resnet50, resnet18 is needed; model.embed_dim is 384, 512" in str(
        caught.value
    )
    with pytest.raises(CheckpointError, match=r"text_encoder\.name is absent, minilm is needed"):
        load_checkpoint(path, {**IDENTITY, "text_encoder": {"name": "minilm"}})


def test_a_checkpoint_from_before_towers_had_sizes_is_taken_up_at_its_own(tmp_path: Path) -> None:
    path = save(tmp_path, 1, identity=IDENTITY)

    def with_size(size: int) -> dict[str, Any]:
        return {"model": {**IDENTITY["model"], "image_size": size}, "image": {**IDENTITY["image"], "size": size}}

    load_checkpoint(path, with_size(224))
    with pytest.raises(
        CheckpointError, match=r"model\.image_size is 224, 96 is needed; image\.size is 224, 96 is needed"
    ):
        load_checkpoint(path, with_size(96))


def test_the_last_ones_and_the_best_stay(tmp_path: Path) -> None:
    best_steps = {2, 5}
    for step in range(1, 9):
        save(tmp_path, step, keep_last=2, is_best=step in best_steps)
        newest_best = max((s for s in best_steps if s <= step), default=None)
        kept = {s for s in range(1, step + 1) if s > step - 2 or s == newest_best}
        assert {p.name for p in tmp_path.iterdir()} == {f"step-{s:08d}" for s in kept}
    assert latest_checkpoint(tmp_path) == tmp_path / "step-00000008"
    assert best_checkpoint(tmp_path) == tmp_path / "step-00000005"


def test_people_may_name_a_run_its_best_or_its_latest(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    with pytest.raises(CheckpointError, match="no checkpoint there"):
        resolve_checkpoint(tmp_path)
    first = save(folder, 1)
    assert resolve_checkpoint(tmp_path) == first
    with pytest.raises(CheckpointError, match="no best checkpoint there"):
        resolve_checkpoint(tmp_path / "best")
    best, last = save(folder, 2, is_best=True), save(folder, 3)
    assert resolve_checkpoint(tmp_path) == resolve_checkpoint(tmp_path / "best") == best
    assert resolve_checkpoint(tmp_path / "latest") == resolve_checkpoint(folder / "latest") == last
    assert resolve_checkpoint(first) == first


def test_saving_a_step_twice_keeps_the_first_and_replaces_a_damaged_one(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    written = path.stat().st_ino
    assert save(tmp_path, 1) == path and path.stat().st_ino == written
    flip(path / "encoder.safetensors")
    save(tmp_path, 1)
    assert damage(path) is None and (tmp_path / "set-aside-0-step-00000001").is_dir()


def test_a_run_continued_from_an_older_step_does_not_meet_the_later_ones(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    set_aside_after(tmp_path, 1)
    assert latest_checkpoint(tmp_path) == tmp_path / "step-00000001"
    assert set_aside_after(tmp_path, 1) == []


def test_a_failed_save_leaves_the_older_ones_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)

    def full_disk(folder: Path, files: dict[str, Pieces]) -> None:
        (folder / "encoder.safetensors").write_bytes(files["encoder.safetensors"][0][:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_files", full_disk)
    with pytest.raises(ValueError, match="No space left on device"):
        save(tmp_path, 2, keep_last=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_a_disk_that_returns_other_bytes_is_caught_before_the_older_one_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    write = module.write_files

    def bad_disk(folder: Path, files: dict[str, Pieces]) -> None:
        write(folder, files)
        flip(folder / "optimizer.safetensors")

    monkeypatch.setattr(module, "write_files", bad_disk)
    with pytest.raises(CheckpointError, match=r"optimizer.safetensors: damaged .* the disk"):
        save(tmp_path, 2, keep_last=1)
    assert load_latest(tmp_path).step == 1  # type: ignore[union-attr]


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["sha256"]
    (path / "manifest.json").write_bytes(checkpoint_files._sign({**manifest, "format_version": 2}))
    with pytest.raises(CheckpointError, match="newer shardclip"):
        load_checkpoint(path)
