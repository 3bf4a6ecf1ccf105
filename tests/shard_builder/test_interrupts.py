"""A build that is interrupted says so, leaves no process, and goes on. Kills: tests/faults/test_build_kills.py."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from photo_folders import write_photos
from process_groups import members
from rich.console import Console

from core.config import Choice, dump_yaml
from shard_builder import build
from shard_builder.build import build_shards
from shard_builder.config import BuildConfig
from shard_builder.engines import processes

ROOT = Path(__file__).resolve().parents[2]
MakeConfig = Callable[..., BuildConfig]
PROGRAM = """
import sys
from pathlib import Path
from core.config import load_config
from shard_builder.build import build_shards
from shard_builder.config import BuildConfig
build_shards(load_config(BuildConfig, Path(sys.argv[1])))
"""
# Presses Ctrl-C once the first of many shards is finished: the terminal's whole group gets it.
INTERRUPTED = f"""
import os, signal
from shard_builder import build
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets its background jobs ignore it
save = build.save_result
def save_and_interrupt(*arguments):
    save(*arguments)
    os.killpg(0, signal.SIGINT)
build.save_result = save_and_interrupt
{PROGRAM}
"""


@pytest.fixture
def config(tmp_path: Path, make_config: MakeConfig) -> BuildConfig:
    photos = write_photos(tmp_path / "many", 120, size=(700, 500))
    source = Choice("jsonl", {"file": str(photos)})
    return make_config(source=source, samples_per_shard=10, workers=2, name="killed")


def run(recipe: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    quiet = subprocess.DEVNULL
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(recipe)], env=environment, stdout=quiet)


def test_an_interrupted_build_says_so_and_leaves_no_process(
    tmp_path: Path, config: BuildConfig, console: Console, make_config: MakeConfig
) -> None:
    build_shards(make_config(source=config.source, samples_per_shard=10, name="undisturbed"), console)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump_yaml(config))
    process = interrupted_in_own_group(recipe)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert errors.decode().count("KeyboardInterrupt") == 1, errors.decode()
    deadline = time.monotonic() + 5
    while members(process.pid):
        assert time.monotonic() < deadline, "a worker outlives the build"
        time.sleep(0.02)
    assert run(recipe).wait() == 0


def test_no_worker_is_left_when_the_folder_is_free_again(
    config: BuildConfig, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, was_free = processes._Worker.stop, []

    def stop(worker: processes._Worker) -> None:
        was_free.append(not (Path(config.out) / ".lock").exists())
        real(worker)

    def fail(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(processes._Worker, "stop", stop)
    monkeypatch.setattr(build, "save_result", fail)
    with pytest.raises(KeyboardInterrupt):
        build_shards(config, console)
    assert was_free == [False, False]
    assert not (Path(config.out) / ".lock").exists()


def interrupted_in_own_group(recipe: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(recipe)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
