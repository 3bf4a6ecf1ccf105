"""A profile of some steps: just those, as a trace and a table, whatever way the run ends."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from gloo import run
from training_runs import SMALL_TOWER, recipe, train_worker

from core.errors import ConfigError
from trainer.telemetry.profiler import TABLE, TRACE, ProfileConfig, profiled


def batches(count: int) -> Iterator[int]:
    yield from range(1, count + 1)


def steps_in(folder: Path) -> int:
    """How many steps' work the trace shows; each step here multiplies once."""
    trace = json.loads(gzip.decompress((folder / TRACE).read_bytes()))
    return sum(event["name"] == "aten::mm" for event in trace["traceEvents"])


@pytest.mark.parametrize(("first", "config", "shown"), [
    (1, ProfileConfig(3, 2), 2),
    (4, ProfileConfig(3, 3), 2),  # a run that goes on amid them
    (1, ProfileConfig(5, 9), 2),  # and one that ends amid them
])  # fmt: skip
def test_the_named_steps_are_recorded(tmp_path: Path, first: int, config: ProfileConfig, shown: int) -> None:
    for step in profiled(batches(6 - first + 1), first, config, tmp_path):
        assert step
        torch.ones(2, 2) @ torch.ones(2, 2)
    assert steps_in(tmp_path) == shown
    assert "aten::mm" in (tmp_path / TABLE).read_text()


@pytest.mark.parametrize("config", [ProfileConfig(), ProfileConfig(7, 2), ProfileConfig(1, 2)])
def test_other_steps_are_not(tmp_path: Path, config: ProfileConfig) -> None:
    assert list(profiled(batches(3), 4, config, tmp_path)) == [1, 2, 3]
    assert not list(tmp_path.iterdir())
    assert not torch.autograd._profiler_enabled()


def test_an_error_leaves_what_was_recorded(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        steps = profiled(batches(3), 1, ProfileConfig(2, 2), tmp_path)
        for step in steps:
            torch.ones(2, 2) @ torch.ones(2, 2)
            if step == 3:
                steps.close()
                raise ZeroDivisionError
    assert steps_in(tmp_path) == 2


def test_what_cannot_be_profiled_is_refused() -> None:
    with pytest.raises(ConfigError, match="from_step=-1, steps=5: give a step from 1"):
        ProfileConfig(from_step=-1)
    with pytest.raises(ConfigError, match="at least 1 step"):
        ProfileConfig(from_step=3, steps=0)


def test_a_recipe_asks_for_a_profile_and_the_first_process_writes_it(tmp_path: Path) -> None:
    plain = recipe(tmp_path, model=SMALL_TOWER, data={"val": []}, max_steps=5)
    assert run(2, train_worker, {**plain, "profile": {"from_step": 3, "steps": 2}}) == [0, 0]
    folder = tmp_path / "run" / "profile"
    trace = json.loads(gzip.decompress((folder / TRACE).read_bytes()))
    assert sum(event["name"] == "Optimizer.step#AdamW.step" for event in trace["traceEvents"]) == 2
    lines = [line.strip() for line in (folder / TABLE).read_text().splitlines()]
    rows = [line for line in lines if line and not line.startswith(("-", "Name", "Self CPU time total"))]
    assert len(rows) == 10
