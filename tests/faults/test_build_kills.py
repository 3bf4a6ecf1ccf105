"""A build killed at random moments, again and again, ends as if nothing had happened; so does one in any other order.

The long form kills 200 times: the whole process group, the build alone, or one of its image workers, in
every phase of the build, also of builds that are going on from a kill. A phase is entered by what the build calls
next, and the build stands still there: it is killed at once, or let go and killed at a moment drawn from a seed, which
is printed; SHARDCLIP_FAULT_SEED replays it.
"""

from __future__ import annotations

import io
import json
import mmap
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fake_encoder import SPEC, expected
from holds import Hold
from photo_folders import folder_bytes, quick_recipe, write_photos
from process_groups import members, state_of
from rich.console import Console

from core.manifest import Manifest, save_manifest
from core.storage import PARTIAL_PREFIX
from shard_builder import build as builder
from shard_builder import caption_embeddings
from shard_builder.build import build_shards
from shard_builder.caption_cache import SUFFIX, CaptionCache
from shard_builder.config import BuildConfig, ImageConfig

# What a build calls when a phase begins.
PHASES = {
    "reading": "read_inputs",
    "captions": "embed_with_progress",
    "images": "_write_shards",
    "publishing": "_publish_extras",
    "closing": "save_manifest",
}
VICTIMS = ("group", "build", "worker")
PATIENCE_S = 60


@dataclass
class Killed:
    """How often each phase and each victim was hit."""

    phases: Counter[str]
    victims: Counter[str]
    finished: int = 0


class Stage:
    """Two bytes that two processes share: the phase the build is in, and the one it may not go into; 0 is none."""

    def __init__(self) -> None:
        self._bytes = mmap.mmap(-1, 2)

    def enter(self, phase: str) -> None:
        self._bytes[0] = number = 1 + list(PHASES).index(phase)
        while self._bytes[1] == number:
            time.sleep(0.0005)

    def now(self) -> str | None:
        return list(PHASES)[self._bytes[0] - 1] if self._bytes[0] else None

    def is_at(self, phase: str) -> bool:
        return self._bytes[0] > list(PHASES).index(phase)

    def close(self, phase: str) -> None:
        """For the next build: it stands still where the phase begins."""
        self._bytes[0], self._bytes[1] = 0, 1 + list(PHASES).index(phase)

    def open(self) -> None:
        self._bytes[1] = 0


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BuildConfig:
    """12 shards of 6 photographs with 30 captions each, in a folder and with a cache of its own."""
    monkeypatch.setattr(caption_embeddings, "SEGMENT_CAPTIONS", 200)
    photos = write_photos(tmp_path / "photos", 72, size=(500, 400))
    lines = [json.loads(line) for line in photos.read_text().splitlines()]
    for number, line in enumerate(lines):
        line["captions"] += [f"no. {k} beside picture {number}" for k in range(30)]
    photos.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return recipe(photos, tmp_path / "killed", tmp_path / "cache")


def recipe(photos: Path, out: Path, cache: Path, workers: int = 2) -> BuildConfig:
    image = ImageConfig(size=64)
    return quick_recipe(photos, out, cache, image=image, samples_per_shard=6, workers=workers)


@pytest.mark.parametrize("kills", [3, pytest.param(200, marks=[pytest.mark.faults, pytest.mark.timeout(1800)])])
def test_a_build_killed_at_random_moments_ends_byte_for_byte_the_same(
    tmp_path: Path, config: BuildConfig, kills: int, fault_seed: int
) -> None:
    killed = kill_again_and_again(tmp_path, config, kills, tuple(PHASES), random.Random(fault_seed))
    print(killed)
    assert killed.phases.total() == kills
    if kills >= 100:
        assert set(killed.phases) == set(PHASES) and set(killed.victims) == set(VICTIMS), killed


@pytest.mark.faults
@pytest.mark.parametrize("defect", ["nothing is swept", "the manifest comes first"])
def test_with_a_planted_defect_this_suite_turns_red(
    tmp_path: Path, config: BuildConfig, defect: str, fault_seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_extras, hold, this_process = builder._publish_extras, Hold(tmp_path / "manifest-is-there"), os.getpid()

    def save_manifest_first(config: BuildConfig, manifest: Manifest, *rest: Any) -> Any:
        save_manifest(manifest, config.out)
        if os.getpid() != this_process:
            hold.stand_still()
        return publish_extras(config, manifest, *rest)

    def is_writing_a_tar() -> bool:
        return any(Path(config.out).glob(f"{PARTIAL_PREFIX}*.tar.*"))

    if defect == "nothing is swept":
        monkeypatch.setattr("shard_builder.build_state.sweep_partials", lambda folder: None)
        phase, is_time = "images", is_writing_a_tar
    else:
        monkeypatch.setattr(builder, "_publish_extras", save_manifest_first)
        phase, is_time = "publishing", lambda: hold.is_held
    with pytest.raises(AssertionError, match="differ"):
        kill_again_and_again(tmp_path, config, 1, (phase,), random.Random(fault_seed), is_time)


@pytest.mark.parametrize("workers", [2, pytest.param(4, marks=pytest.mark.faults)])
def test_any_number_of_workers_and_any_order_of_the_inputs_give_the_same_bytes(
    tmp_path: Path, config: BuildConfig, workers: int, fault_seed: int
) -> None:
    listing = Path(config.source.options["file"])
    alone = recipe(listing, tmp_path / "alone", tmp_path / "cache", workers=1)
    build(alone)
    lines = listing.read_text().splitlines(keepends=True)
    random.Random(fault_seed).shuffle(lines)
    listing.write_text("".join(lines))
    shuffled = recipe(listing, tmp_path / "shuffled", tmp_path / "other-cache", workers)
    build(shuffled)
    assert_same(folder_bytes(shuffled.out), folder_bytes(alone.out))
    lines[0] = lines[0].replace("beside", "behind")
    listing.write_text("".join(lines))
    other = recipe(listing, tmp_path / "other", tmp_path / "cache", workers)
    build(other)
    with pytest.raises(AssertionError, match="differ"):  # the comparison can fail
        assert_same(folder_bytes(other.out), folder_bytes(alone.out))


def kill_again_and_again(
    tmp_path: Path,
    config: BuildConfig,
    kills: int,
    phases: tuple[str, ...],
    draw: random.Random,
    is_time: Callable[[], bool] | None = None,
) -> Killed:
    """Kill until `kills` builds were hit, going on each time; finished ones are compared and begun again.

    Args:
        is_time: kill whole groups and only when it is true, whatever the clock says.
    """
    undisturbed = recipe(Path(config.source.options["file"]), tmp_path / "undisturbed", tmp_path / "other-cache")
    lengths = phase_lengths(undisturbed)
    wanted = folder_bytes(undisturbed.out)
    killed, stage = Killed(Counter(), Counter()), Stage()
    while killed.phases.total() < kills:
        phase, victim = draw.choice(phases), draw.choice(VICTIMS) if is_time is None else "group"
        delay_s = draw.choice([0, draw.uniform(0, 1.1) * lengths[phase]])
        hit = kill_one(config, stage, phase, delay_s, victim, is_time)
        if hit:
            killed.phases[hit[0]] += 1
            killed.victims[hit[1]] += 1
        else:
            killed.finished += 1
            assert_same(folder_bytes(config.out), wanted)
            shutil.rmtree(config.out)
            shutil.rmtree(config.cache_dir)
    build(config)
    assert_same(folder_bytes(config.out), wanted)
    expect_no_litter(config.caption_cache)
    return killed


def kill_one(
    config: BuildConfig, stage: Stage, phase: str, delay_s: float, victim: str, is_time: Callable[[], bool] | None
) -> tuple[str, str] | None:
    """Start a build and SIGKILL it in `phase`, so long after that began, or when it is time.

    Returns:
        The phase and the victim that were hit, None where the build was quicker.
    """
    stage.close(phase)
    with started(config, stage) as group:
        deadline = time.monotonic() + PATIENCE_S
        while not stage.is_at(phase) and state_of(group) not in "ZX" and time.monotonic() < deadline:
            time.sleep(0.0005)
        if is_time or delay_s:
            stage.open()
            wait(group, deadline, is_time) if is_time else time.sleep(delay_s)
        workers = [pid for pid in members(group) if pid != group]
        victim = victim if workers or victim == "group" else "build"
        at = stage.now()
        with suppress(ProcessLookupError):
            if victim == "group":
                os.killpg(group, signal.SIGKILL)
            elif victim == "build":
                os.kill(group, signal.SIGKILL)
            else:
                os.kill(workers[0], signal.SIGKILL)  # the build itself ends with an error
        stage.open()
        code = exit_code(group, deadline)
        assert code in (0, -signal.SIGKILL) or victim == "worker", f"the build ended with {code}"
        while members(group):
            assert time.monotonic() < deadline, "a worker outlives the build"
            time.sleep(0.002)
    assert at, "the build did not come to its first phase"
    return None if code == 0 else (at, victim)


def wait(group: int, deadline: float, is_time: Callable[[], bool]) -> None:
    """Stop all processes of the group when it is time, or return when they have ended."""
    while members(group):
        assert time.monotonic() < deadline, "it is never time"
        if is_time():
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGSTOP)
            while not all(state_of(pid) in "TZX" for pid in members(group)):
                time.sleep(0.0005)
            if is_time():  # still, now that nobody moves
                return
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGCONT)
        time.sleep(0.0005)


def exit_code(pid: int, deadline: float) -> int:
    """Wait for the process to end."""
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    raise AssertionError("the build hangs")


def assert_same(found: dict[str, bytes], wanted: dict[str, bytes]) -> None:
    names = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
    assert not names, f"these files differ: {names}"


def expect_no_litter(cache: Path) -> None:
    """What a killed build leaves in the cache may be a living one's, so it is swept by the next build an hour later."""
    for path in cache.rglob(f"{PARTIAL_PREFIX}*"):
        os.utime(path, (0, 0))
    CaptionCache(cache, SPEC).add(["one more"], expected(["one more"]))
    assert {path.suffix for path in cache.rglob("*") if path.is_file()} == {SUFFIX}


def phase_lengths(config: BuildConfig) -> dict[str, float]:
    """Seconds of each phase of an undisturbed build."""
    began: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        announce(patch, lambda phase: began.append(time.monotonic()))
        build(config)
    ends = [*began[1:], time.monotonic()]
    return {phase: end - start for phase, start, end in zip(PHASES, began, ends, strict=True)}


def announce(patch: pytest.MonkeyPatch, enter: Callable[[str], Any]) -> None:
    """Let the build say which phase it enters; what it does stays the same."""
    for phase, name in PHASES.items():
        real = getattr(builder, name)

        def announced(*arguments: Any, phase: str = phase, real: Callable[..., Any] = real) -> Any:
            enter(phase)
            return real(*arguments)

        patch.setattr(builder, name, announced)


@contextmanager
def started(config: BuildConfig, stage: Stage) -> Iterator[int]:
    """A build in a process group of its own; forked, so that it is at work after milliseconds."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            os.setsid()
            announce(pytest.MonkeyPatch(), stage.enter)
            with open(os.devnull, "w") as nothing:
                os.dup2(nothing.fileno(), 2)
            build(config)
            code = 0
        finally:
            os._exit(code)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError, ChildProcessError):
            os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)


def build(config: BuildConfig) -> None:
    build_shards(config, Console(file=io.StringIO()))
