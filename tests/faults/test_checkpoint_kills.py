"""A process that does nothing but save checkpoints, killed at random moments: the latest one loads after every kill.

Every other kill comes at a moment of the clock, the rest at a change that a save makes on the disk, where the process
stands still until it is killed. The short form kills 10 times, the long one 200. The seed is printed;
SHARDCLIP_FAULT_SEED replays it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import gloo
import pytest
import torch
from holds import Hold, hold_at_change

from core.errors import CheckpointError
from core.storage import PARTIAL_PREFIX
from trainer.checkpoint.folder import best_checkpoint, load_latest, save_checkpoint, step_name

SIZE, BEST_EVERY = (300, 300), 5
PARTS = {"encoder", "objective", "ema"}
MOST_CHANGES = 60  # of two saves, about: files opened, written and synced, names made, moved and removed
PATIENCE_S = 60.0


def save_for_ever(folder: Path, told: Path, plant: Callable[[], None] | None, change: int, hold: Hold) -> None:
    """Go on from the latest checkpoint; each step that is saved is told. After the first, stand still at a change."""
    if plant is not None:
        plant()
    latest = load_latest(folder)
    step = latest.step if latest else 0
    while True:
        step += 1
        value = torch.full(SIZE, float(step))
        save_checkpoint(
            folder,
            parts={name: {"w": value} for name in PARTS},
            optimizer_state={"state": {0: {"m": value}}},
            state={"step": step},
            identity={},
            keep_last=2,
            is_best=step % BEST_EVERY == 0,
        )
        if change and not told.exists():
            hold_at_change(folder, change, hold)
        told.write_text(str(step))


def kill_savers(tmp_path: Path, seed: int, kills: int, plant: Callable[[], None] | None = None) -> int:
    """Kill so many, and hold what each left to what it had told; returns how many were killed inside a save."""
    chance, torn = random.Random(seed), 0
    folder = tmp_path / "checkpoints"
    for number in range(kills):
        told, hold = tmp_path / f"told-{number}", Hold(tmp_path / f"hold-{number}")
        # What must be found does not depend on the clock.
        change = chance.randint(1, MOST_CHANGES) if plant or number % 2 else 0
        with gloo.started(1, save_for_ever, folder, told, plant, change, hold) as group:
            deadline = time.monotonic() + PATIENCE_S
            while not told.exists():
                assert group.is_running, group.results()
                assert time.monotonic() < deadline, "no checkpoint comes"
                time.sleep(0.001)
            if change:
                hold.wait(lambda group=group: group.is_running)
            else:
                time.sleep(chance.uniform(0, 0.1))
            group.kill()
        torn += any(folder.glob(f"{PARTIAL_PREFIX}*"))
        step, latest = int(told.read_text() or 0), load_latest(folder)
        assert latest is not None, "no latest checkpoint is left"
        assert latest.step in (step, step + 1) or not step, f"the latest is {latest.step}, told was {step}"
        expected = torch.full(SIZE, float(latest.step))
        assert latest.parts.keys() == PARTS and all(torch.equal(part["w"], expected) for part in latest.parts.values())
        best, newest_best = best_checkpoint(folder), latest.step - latest.step % BEST_EVERY
        assert (best is None and not newest_best) or best == folder / step_name(newest_best), f"the best is {best}"
    return torn


@pytest.mark.parametrize("kills", [10, pytest.param(200, marks=[pytest.mark.faults, pytest.mark.timeout(900)])])
def test_the_latest_loads_after_every_kill(tmp_path: Path, fault_seed: int, kills: int) -> None:
    torn = kill_savers(tmp_path, fault_seed, kills)
    print(f"{kills} kills, {torn} of them inside a save")
    assert torn or kills < 50, "no kill met a save: this proves less than it says"


def write_in_place() -> None:
    import trainer.checkpoint.folder

    def publish(fill: Callable[[Path], None], target: Path) -> None:
        target.mkdir(parents=True)
        fill(target)

    trainer.checkpoint.folder.publish_folder = publish


def remove_before_saving() -> None:
    """As those do who have no disk for one more."""
    import trainer.checkpoint.folder

    real = trainer.checkpoint.folder.publish_folder

    def publish(fill: Callable[[Path], None], target: Path) -> None:
        for path in target.parent.glob("step-*"):
            path.rename(path.with_name(f"{PARTIAL_PREFIX}{path.name}"))
        real(fill, target)

    trainer.checkpoint.folder.publish_folder = publish


@pytest.mark.faults
@pytest.mark.parametrize(
    ("plant", "error", "complaint"),
    [
        (write_in_place, CheckpointError, "damaged"),
        (remove_before_saving, AssertionError, "no latest checkpoint is left|the best is"),
    ],
)
def test_a_planted_defect_turns_the_kills_red(
    tmp_path: Path, fault_seed: int, plant: Callable[[], None], error: type[Exception], complaint: str
) -> None:
    with pytest.raises(error, match=complaint):
        kill_savers(tmp_path, fault_seed, 30, plant)
