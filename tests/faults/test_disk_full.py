"""A full disk while building, saving and training: one sentence, nothing half written is believed, and it goes on.

Two forms: a small tmpfs that is filled up (where this user may mount one), and a limit on the size of files, which is
everywhere and reaches worker processes too. How much room is left is drawn from a seed; SHARDCLIP_FAULT_SEED replays.
"""

from __future__ import annotations

import errno
import io
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import gloo
import pytest
import torch
from photo_folders import folder_bytes, quick_recipe, write_photos
from rich.console import Console
from training_runs import SMALL_TOWER, end_state, losses, recipe, train_worker

from core.config import Choice, dump_yaml
from core.errors import StorageError, cannot_write
from core.storage import PARTIAL_PREFIX
from shard_builder.build import build_shards
from shard_builder.config import BuildConfig, ImageConfig
from trainer.checkpoint.folder import latest_checkpoint, load_checkpoint, save_checkpoint
from trainer.data.ledger import CoverageLedger

DISK_BYTES = 48 << 20
ROOM = "Free space on that disk and start the same command again"
BALLAST = "ballast"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An empty file system of 48 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def config(tmp_path: Path, caption_cache: Path) -> BuildConfig:
    """A build of 5 shards, undisturbed."""
    photos = write_photos(tmp_path / "photos", 40)
    image = ImageConfig(size=64)
    return quick_recipe(photos, tmp_path / "undisturbed", caption_cache, image=image, samples_per_shard=8)


def fill(disk: Path, leave: int) -> None:
    """Take all room but `leave` bytes."""
    with open(disk / BALLAST, "wb") as file:
        for size in (1 << 20, 4096):
            try:
                while shutil.disk_usage(disk).free > leave:
                    file.write(bytes(size))
                    file.flush()
            except OSError as error:
                assert error.errno == errno.ENOSPC
    with open(disk / BALLAST, "r+b") as file:
        file.truncate((disk / BALLAST).stat().st_size - max(0, leave - shutil.disk_usage(disk).free))


def build(config: BuildConfig) -> None:
    build_shards(config, Console(file=io.StringIO()))


def used(folder: Path) -> int:
    return sum(len(data) + 4096 for data in folder_bytes(folder).values())


def refused(config: BuildConfig) -> str | None:
    """The sentence with which a build ends, if it does; it must leave neither a manifest nor litter."""
    try:
        build(config)
    except StorageError as error:
        left = [path.name for path in Path(config.out).rglob("*")] if Path(config.out).exists() else []
        assert "manifest.json" not in left, "a set is believed that is not there"
        assert not [name for name in left if name.startswith(PARTIAL_PREFIX) or name == ".lock"], left
        return str(error)
    return None


@pytest.mark.parametrize("trials", [3, pytest.param(40, marks=pytest.mark.faults)])
def test_a_build_on_a_full_disk_says_so_and_goes_on_when_there_is_room(
    small_disk: Path, config: BuildConfig, trials: int, fault_seed: int
) -> None:
    build(config)
    draw, sentences = random.Random(fault_seed), 0
    finished = used(Path(config.out))
    for trial in range(trials):
        out, cache = small_disk / f"set-{trial}", small_disk / f"cache-{trial}"
        here = replace(config, out=str(out), cache_dir=cache)
        # Once surely too little; later on enough now and then, with the cached captions.
        fill(small_disk, draw.randrange(finished + 200_000 if trial else finished // 2))
        if (sentence := refused(here)) is not None:
            sentences += 1
            assert str(small_disk) in sentence and "No space left on device" in sentence and ROOM in sentence, sentence
        (small_disk / BALLAST).unlink()
        build(here)
        assert folder_bytes(out) == folder_bytes(config.out)
        for folder in (out, cache):
            shutil.rmtree(folder)
    assert sentences, "there was always room: this proves nothing"


@pytest.mark.parametrize("trials", [3, pytest.param(30, marks=pytest.mark.faults)])
def test_a_build_under_a_limit_on_file_sizes_says_so_and_goes_on_without_it(
    tmp_path: Path, config: BuildConfig, trials: int, fault_seed: int
) -> None:
    build(config)
    largest = max(map(len, folder_bytes(config.out).values()))
    draw = random.Random(fault_seed)
    for _ in range(trials):
        here = replace(config, out=str(tmp_path / "limited"))
        with limit_on_file_sizes(draw.randrange(100, largest)):
            sentence = refused(here)
        assert sentence and here.out in sentence and "File too large" in sentence and "`ulimit -f`" in sentence
        build(here)
        assert folder_bytes(here.out) == folder_bytes(config.out)
        shutil.rmtree(here.out)


@contextmanager
def limit_on_file_sizes(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_the_command_ends_with_the_sentence_and_code_2(small_disk: Path, config: BuildConfig, tmp_path: Path) -> None:
    here = replace(config, out=str(small_disk / "set"), text_encoder=Choice("minilm"), cache_dir=small_disk)
    (tmp_path / "recipe.yaml").write_text(dump_yaml(here))
    fill(small_disk, 0)
    command = [sys.executable, "-m", "launch.cli", "build", str(tmp_path / "recipe.yaml")]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("shardclip: ") and str(small_disk) in done.stderr and ROOM in done.stderr


def test_with_a_manifest_written_in_place_this_suite_turns_red(
    small_disk: Path, config: BuildConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_in_place(data: bytes, target: str) -> str:
        fill(small_disk, 0)
        try:
            Path(target).write_bytes(data)
        except OSError as error:
            raise StorageError(str(error)) from error
        return ""

    monkeypatch.setattr("core.manifest.publish_bytes", write_in_place)
    with pytest.raises(AssertionError, match="a set is believed that is not there"):
        refused(replace(config, out=str(small_disk / "set")))


@pytest.mark.parametrize("trials", [10, pytest.param(200, marks=pytest.mark.faults)])
def test_a_checkpoint_on_a_full_disk_leaves_the_one_before(small_disk: Path, trials: int, fault_seed: int) -> None:
    save_on_a_full_disk(small_disk, trials, random.Random(fault_seed))


def test_with_checkpoints_written_in_place_this_suite_turns_red(
    small_disk: Path, fault_seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_in_place(write: Callable[[Path], None], target: Path) -> None:
        target.mkdir(parents=True)
        try:
            write(target)
        except OSError as error:
            raise cannot_write(target, error) from error

    monkeypatch.setattr("trainer.checkpoint.folder.publish_folder", write_in_place)
    with pytest.raises(AssertionError):
        save_on_a_full_disk(small_disk, 10, random.Random(fault_seed))


def save_on_a_full_disk(small_disk: Path, trials: int, draw: random.Random) -> None:
    folder = small_disk / "run" / "checkpoints"
    save(folder, 1)
    needed, refusals = 4 * used(folder), 0
    for _ in range(trials):
        fill(small_disk, draw.randrange(needed // 3))
        try:
            save(folder, 2)
        except StorageError as error:
            refusals += 1
            assert "step-00000002" in str(error) and ROOM in str(error)
            assert [path.name for path in folder.iterdir()] == ["step-00000001"]
        else:
            shutil.rmtree(folder / "step-00000002")
        assert is_step(folder / "step-00000001", 1)
        (small_disk / BALLAST).unlink()
    assert refusals, "there was always room: this proves nothing"
    save(folder, 2)
    assert is_step(folder / "step-00000002", 2)


def save(folder: Path, step: int) -> None:
    value = torch.full((200, 200), float(step))
    save_checkpoint(
        folder,
        parts={"encoder": {"w": value}},
        optimizer_state={"state": {0: {"m": value}}},
        state={"step": step},
        identity={},
        keep_last=2,
        is_best=False,
    )


def is_step(path: Path, step: int) -> bool:
    return torch.equal(load_checkpoint(path).parts["encoder"]["w"], torch.full((200, 200), float(step)))


@pytest.mark.parametrize("trials", [1, pytest.param(12, marks=pytest.mark.faults)])
def test_a_run_on_a_full_disk_says_so_and_goes_on_with_the_same_losses(
    small_disk: Path, tmp_path: Path, trials: int, fault_seed: int
) -> None:
    draw = random.Random(fault_seed)
    whole = recipe(tmp_path, run_dir=tmp_path / "whole", model=SMALL_TOWER)
    assert gloo.run(1, train_worker, whole) == [0]
    for trial in range(trials):
        run_dir = small_disk / f"run-{trial}"
        broken = recipe(tmp_path, run_dir=run_dir, model=SMALL_TOWER)
        step, leave = draw.randrange(1, 12), draw.choice([0, 0, draw.randrange(300_000)])
        plant = partial(fill_at, small_disk, step, leave)
        (said,) = gloo.run(1, train_worker, broken, None, None, plant)
        assert said == 0 or (str(run_dir) in str(said) and ROOM in str(said)), said
        assert said != 0 or leave, "a run finished without room"
        before = latest_checkpoint(run_dir / "checkpoints")
        assert before is None or load_checkpoint(before).step <= 12
        (small_disk / BALLAST).unlink()
        assert gloo.run(1, train_worker, broken) == [0]
        assert losses(run_dir) == losses(tmp_path / "whole")
        assert end_state(run_dir) == end_state(tmp_path / "whole")
        shutil.rmtree(run_dir)


def fill_at(disk: Path, step: int, leave: int) -> None:
    """Plant: the disk is full from this step on."""
    add = CoverageLedger.add
    steps = iter(range(1, 1000))

    def add_and_fill(ledger: CoverageLedger, batch: object) -> None:
        add(ledger, batch)  # type: ignore[arg-type]
        if next(steps) == step:
            fill(disk, leave)

    CoverageLedger.add = add_and_fill  # type: ignore[assignment, method-assign]
