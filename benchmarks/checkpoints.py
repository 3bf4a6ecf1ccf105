"""What checkpoints cost a training on the CPU: `python -m benchmarks.checkpoints`.

How long the loop stands still for a save, against one copy of as many bytes in the same process just before it; and
the wall time of a recipe's steps with a save every 5 of them against none, in alternating pairs. Real runs: `open_run`
and `train` on a synthetic shard set; each in a process of its own.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT, compare, in_own_process, publish, take_turns

STEPS, EVERY, PAIRS, SAVES = 20, 5, 5, 12
LIMIT = 1.5  # of the copy
RECIPE = "ResNet18 trained as a whole, 64 px, batches of 16, AdamW, float32, no validation"


def main(arguments: Sequence[str]) -> None:
    if arguments and arguments[0] == "run":
        print(json.dumps(_run(Path(arguments[1]), int(arguments[2]), arguments[3] == "copies")))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _make_shards(folder)
        still = in_own_process("benchmarks.checkpoints", "run", str(folder), "1", "copies")
        runs: dict[str, list[dict[str, Any]]] = {"no saves": [], f"a save every {EVERY} steps": []}

        def timed(which: str, every: int) -> Callable[[], float]:
            def once() -> float:
                mode = "pairs"
                runs[which].append(in_own_process("benchmarks.checkpoints", "run", str(folder), str(every), mode))
                return float(runs[which][-1]["wall_s"])

            return once

        names = list(runs)
        walls = take_turns({names[0]: timed(names[0], STEPS), names[1]: timed(names[1], EVERY)}, PAIRS, warm_up=False)
    input = f"{RECIPE}; state of {still['bytes'] / 2**20:.0f} MiB"
    first, *saves = still["saves"]
    milliseconds = {"one copy of as many bytes": still["copies"][1:], "the loop stands still": saves}
    waits = [1000 * wait for run in runs[names[1]] for wait in run["saves"]]
    publish(
        "checkpoints",
        [
            compare(
                "Standstill of the loop for a save",
                {who: [1000 * seconds for seconds in row] for who, row in milliseconds.items()},
                ours="one copy of as many bytes",
                unit="ms",
                input=f"{input}; a save after each of {SAVES} steps, the one before published already",
                less_is_better=True,
                limit=f"{LIMIT} times the copy",
                the_first_save=f"{1000 * first:.0f} ms, which makes the memory (not counted above)",
            ),
            compare(
                "Wall time with saves and without",
                walls,
                ours=names[0],
                unit=f"s for {STEPS} steps",
                input=f"{input}; both save after the last step, and wait for that",
                less_is_better=True,
                standstill=f"of the loop for each save of these runs, waiting for the one before included: median "
                f"{sorted(waits)[len(waits) // 2]:.0f} ms, at most {max(waits):.0f} ms",
            ),
        ],
        ["shardclip", "torch", "torchvision"],
    )


def _make_shards(folder: Path) -> None:
    sys.path.append(str(ROOT / "tests"))
    from shard_sets import make_shard_set

    make_shard_set(folder / "train", 16 * STEPS, size=64, embed_dim=64, samples_per_shard=100)


def _run(folder: Path, every: int, with_copies: bool) -> dict[str, Any]:
    """One training; seconds that its loop stood still for each save, and of a copy just before it where asked for."""
    from core.config import from_mapping
    from eval.validation import make_validation
    from trainer.config import TrainConfig
    from trainer.run.opening import open_run
    from trainer.run.run import Run
    from trainer.train import train

    real, saves, copies = Run.save, [], []
    copy: list[Callable[[], float]] = []

    def save(run: Run, step: int, is_best: bool) -> None:
        if with_copies:
            run.await_save()
            if not copy:
                copy.append(_copier(state_bytes(run)))
            copies.append(copy[0]())
        began = time.perf_counter()
        real(run, step, is_best)
        saves.append(time.perf_counter() - began)

    Run.save = save  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory(dir=folder) as run_dir:
        values = _recipe(folder, Path(run_dir) / "run", SAVES if with_copies else STEPS, every)
        run = open_run(from_mapping(TrainConfig, values, "benchmark"), make_validation)
        began = time.perf_counter()
        assert train(run) == 0
        wall_s = time.perf_counter() - began
        return {"wall_s": wall_s, "saves": saves, "copies": copies, "bytes": state_bytes(run)}


def _recipe(folder: Path, run_dir: Path, steps: int, every: int) -> dict[str, Any]:
    return {
        "run_dir": run_dir,
        "data": {"train": str(folder / "train"), "num_workers": 0},
        "global_batch_size": 16,
        "max_steps": steps,
        "model": {"tower": "resnet18", "hidden_dim": 256},
        "optim": {"warmup_steps": 0},
        "log_every": steps,
        "checkpoint_every": every,
        "keep_last": 1,
        "tracking": {"wandb": "disabled"},
    }


def state_bytes(run: Any) -> int:
    """All tensors of a checkpoint."""
    from torch import Tensor

    from trainer.checkpoint.tensor_tree import map_tensors
    from trainer.run.state import contents

    sizes: list[int] = []

    def count(tensor: Tensor) -> None:
        sizes.append(tensor.nbytes)

    map_tensors(contents(run.holders, run._state(0, {}, [])), count)
    return sum(sizes)


def _copier(num_bytes: int) -> Callable[[], float]:
    """Copies that many bytes between two places that were written before; returns the seconds."""
    import torch

    source, target = (torch.full((num_bytes,), value, dtype=torch.uint8) for value in (1, 2))

    def once() -> float:
        began = time.perf_counter()
        target.copy_(source)
        return time.perf_counter() - began

    return once


if __name__ == "__main__":
    main(sys.argv[1:])
