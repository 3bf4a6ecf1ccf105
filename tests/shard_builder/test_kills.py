"""A build killed at random moments, again and again, ends as if nothing had happened.

The short form kills 6 times, the long one 200; the seed is printed for replay.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from photo_folders import folder_bytes, write_photos
from rich.console import Console

from core.config import Choice, dump_yaml
from shard_builder.build import BuildConfig, build_shards

ROOT = Path(__file__).resolve().parents[2]
MakeConfig = Callable[..., BuildConfig]
PROGRAM = """
import sys
from pathlib import Path
from core.config import load_config
from shard_builder.build import BuildConfig, build_shards
build_shards(load_config(BuildConfig, Path(sys.argv[1])))
"""


@pytest.fixture
def config(tmp_path: Path, make_config: MakeConfig) -> BuildConfig:
    photos = write_photos(tmp_path / "many", 120, size=(700, 500))
    source = Choice("jsonl", {"file": str(photos)})
    return make_config(source=source, samples_per_shard=10, workers=2, name="killed")


@pytest.mark.parametrize("kills", [6, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_a_build_killed_at_random_moments_ends_byte_for_byte_the_same(
    tmp_path: Path, config: BuildConfig, make_config: MakeConfig, console: Console, kills: int
) -> None:
    undisturbed = make_config(source=config.source, samples_per_shard=10, name="undisturbed")
    build_shards(undisturbed, console)  # also fills the caption cache: what is killed below is the image work
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump_yaml(config))
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    moments = random.Random(seed)
    whole_s = time_of(recipe, config)
    unfinished = 0
    for _ in range(kills):
        finished = kill_after(recipe, moments.uniform(0.1, 1.0) * whole_s)
        unfinished += not finished
        if finished:
            check_equal(config, undisturbed)
            start_over(config)
    assert unfinished, "every build was quicker than its killer: this proves nothing"
    assert run(recipe).wait() == 0
    check_equal(config, undisturbed)


def run(recipe: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    quiet = subprocess.DEVNULL
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(recipe)], env=environment, stdout=quiet)


def time_of(recipe: Path, config: BuildConfig) -> float:
    start = time.monotonic()
    assert run(recipe).wait() == 0
    start_over(config)
    return time.monotonic() - start


def kill_after(recipe: Path, seconds: float) -> bool:
    """Start a build and SIGKILL it; returns whether it had come to its end before."""
    process = run(recipe)
    try:
        return process.wait(seconds) == 0
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return False


def check_equal(config: BuildConfig, undisturbed: BuildConfig) -> None:
    assert folder_bytes(config.out) == folder_bytes(undisturbed.out)


def start_over(config: BuildConfig) -> None:
    subprocess.run(["rm", "-r", config.out], check=True)


def test_an_interrupted_build_says_so_and_leaves_no_process(
    tmp_path: Path, config: BuildConfig, console: Console, make_config: MakeConfig
) -> None:
    build_shards(make_config(source=config.source, samples_per_shard=10, name="undisturbed"), console)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump_yaml(config))
    process = run_in_own_group(recipe)
    wait_for(Path(config.out) / ".build/recipe.json")
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C: parent and workers get it
    _, errors = process.communicate(timeout=30)
    assert process.returncode != 0
    assert errors.decode().count("KeyboardInterrupt") == 1, errors.decode()
    deadline = time.monotonic() + 5
    while alive_in_group(process.pid):
        assert time.monotonic() < deadline, "a worker outlives the build"
        time.sleep(0.02)
    assert run(recipe).wait() == 0


def run_in_own_group(recipe: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(recipe)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} does not appear"
        time.sleep(0.01)


def alive_in_group(group: int) -> list[str]:
    """The processes of a group, dead ones that nobody has waited for left out."""
    stats = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            stats.append(path.read_text().rsplit(")", 1)[1].split())
    return [state for state, _, of_group, *_ in stats if int(of_group) == group and state != "Z"]
