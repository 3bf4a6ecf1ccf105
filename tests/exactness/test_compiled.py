"""torch.compile in the real run: graphs end at DDP's buckets, where all-reduce overlaps backward, and are made once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gloo import run
from torch import nn
from training_runs import recipe, train_worker


def compiled_run(values: dict[str, Any]) -> tuple[int | str, list[int], list[int]]:
    """In one process of a group: the exit code, buckets of each graph under DDP, and frames compiled by each step."""
    from torch._dynamo.backends.distributed import DDPOptimizer
    from torch._dynamo.utils import counters

    from trainer.run.run import Run

    buckets: list[int] = []
    frames: list[int] = []
    cut, count, compile_model = DDPOptimizer.compile_fn, Run.count, nn.Module.compile

    def cut_and_note(self: Any, *given: Any) -> Any:
        made = cut(self, *given)
        buckets.append(len(self.buckets))
        return made

    def count_and_note(self: Run, *given: Any) -> None:
        count(self, *given)
        frames.append(counters["frames"]["total"])

    DDPOptimizer.compile_fn = cut_and_note
    Run.count = count_and_note  # type: ignore[method-assign]
    # Where graphs end is decided before the backend; this one needs no C++ compiler.
    nn.Module.compile = lambda self: compile_model(self, backend="aot_eager")  # type: ignore[method-assign]
    return train_worker(values), buckets, frames


@pytest.mark.parametrize("accumulate", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_graphs_end_at_the_buckets_and_are_made_once(tmp_path: Path, accumulate: int) -> None:
    model = {"tower": "resnet18", "freeze": "nothing", "compile": True}
    values = recipe(
        tmp_path, model=model, accumulate=accumulate, precision="bf16", epochs=1, eval_every=2, checkpoint_every=3,
        optim={"ema_decay": 0.9},
    )  # fmt: skip
    for code, buckets, frames in run(2, compiled_run, values, timeout_s=300):
        assert code == 0
        assert len(buckets) == 1 and buckets[0] >= 2, "11 million parameters are more than one bucket"
        assert len(frames) == 6 and frames[1] == frames[-1], "something was compiled again after the second step"


def test_a_single_process_compiles_once_too(tmp_path: Path) -> None:
    values = recipe(tmp_path, model={"tower": "small", "freeze": "nothing", "compile": True}, epochs=1, eval_every=2)
    ((code, _, frames),) = run(1, compiled_run, values)
    assert code == 0 and frames[1] == frames[-1] > 0


@pytest.mark.parametrize("world_size", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_thaw_compiles_once_more_and_nothing_else_does(tmp_path: Path, world_size: int) -> None:
    model = {"tower": "small", "freeze": "tower", "thaw": {"3": "nothing"}, "compile": True}
    values = recipe(tmp_path, model=model, eval_every=2)
    for code, _, frames in run(world_size, compiled_run, values, timeout_s=300):
        assert code == 0 and len(frames) == 12
        assert frames[1] == frames[2] < frames[4] == frames[-1], frames
