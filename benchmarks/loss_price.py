"""What one engine for all objectives costs InfoNCE, against the loss before it: `python -m benchmarks.loss_price`.

Time and most memory of forward and backward as the trainer calls it, with stored and with trained texts. One process,
one thread; both take turns, pair by pair. Processor time stands beside the clock's, since that of a machine with other
work on it says little. Random unit features of 512 numbers, float32.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

from benchmarks.measure import Comparison, compare, in_own_process, pin, publish

SIZES = (2048, 8192)
ROUNDS = 9
MEMORY_ROUNDS = 3
TEXTS = ("texts stored", "texts trained")
LIMIT = 1.1
KINDS = ("time", "processor time")


def main() -> None:
    pin()
    comparisons = [comparison for size in SIZES for texts in TEXTS for comparison in _measure(size, texts)]
    publish("loss_price", comparisons, ["shardclip", "torch"])


def _measure(size: int, texts: str) -> list[Comparison]:
    """A table of each kind of time, and one of memory."""
    before = f"{texts}, before"
    input = f"{size:,} pairs x 512, float32, one process on one core"
    found = _apart("time", size, texts)
    memory: dict[str, list[float]] = {texts: [], before: []}
    for _ in range(MEMORY_ROUNDS):  # what the kernel counts differs from run to run by a fifth
        for name, runs in memory.items():
            runs.append(_apart("memory", size, name)["peak_bytes"] / 2**20)
    comparisons = [
        compare(
            f"{size:,} pairs, {texts}: {kind}",
            {name: [1000 * seconds for seconds in runs] for name, runs in times.items()},
            ours=before,
            unit="ms forward + backward",
            input=input,
            less_is_better=True,
            **_of_pairs(times[texts], times[before]),
        )
        for kind, times in found.items()
    ]
    title = f"{size:,} pairs, {texts}: most memory at once"
    return [
        *comparisons,
        compare(title, memory, ours=before, unit="MiB above the features", input=input, less_is_better=True),
    ]


def _of_pairs(now: Sequence[float], before: Sequence[float]) -> dict[str, str]:
    ratios = sorted(one / other for one, other in zip(now, before, strict=True))
    listed = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    return {"now / before of each pair": f"{listed}; median {median(ratios):.3f}, at most {LIMIT} is meant"}


def _apart(task: str, size: int, name: str) -> dict[str, Any]:
    return in_own_process("benchmarks.loss_price", "worker", task, str(size), name, peers=True)


def _worker(task: str, size: int, name: str) -> None:
    """The process that measures; it prints what was found."""
    import torch

    from benchmarks.loss_contenders import Features, Step, before_and_now, make_features, memory_of

    def once(step: Step, features: Features) -> tuple[float, float]:
        features.clear()
        began = time.perf_counter(), time.process_time()
        step(features)
        return time.perf_counter() - began[0], time.process_time() - began[1]

    torch.set_num_threads(1)
    steps, features = before_and_now(), make_features(size, "cpu")
    if task == "memory":
        steps[name](make_features(8, "cpu"))  # loads code
        print(json.dumps(memory_of(steps[name], features)))
        return
    names = [name, f"{name}, before"]
    figures: dict[str, dict[str, list[float]]] = {kind: {one: [] for one in names} for kind in KINDS}
    for number in range(ROUNDS + 1):
        for one in names if number % 2 else reversed(names):
            for kind, seconds in zip(KINDS, once(steps[one], features)):
                if number:  # the first round warms up
                    figures[kind][one].append(seconds)
    print(json.dumps(figures))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["worker", task, size, name]:
            _worker(task, int(size), name)
        case _:
            main()
