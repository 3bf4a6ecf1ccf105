"""Ranks of COCO val2014's 40,504 images and 202,654 captions against their product alone: `python -m benchmarks.ranks`.

One process with two threads, and two processes with one each, on the same two cores. The product is that of the same
tiles, and nothing is compared. Memory is each process's own, above its features.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.measure import ROOT, Comparison, compare, pin, publish
from benchmarks.memory import peak_above

NUM_CORES, EMBED_DIM, NUM_IMAGES, MORE_CAPTIONS = 2, 512, 40_504, 134  # five captions each, and one more for some
PRODUCT, RANKS = "the product alone", "shardclip"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=NUM_IMAGES)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    pin(NUM_CORES)
    tables = [
        table
        for num_processes in (1, 2)
        for table in _tables(num_processes, _together(num_processes, options.images, options.rounds), options.images)
    ]
    publish("ranks", tables, ["shardclip", "torch", "numpy"])


def _tables(num_processes: int, measured: list[dict[str, Any]], num_images: int) -> list[Comparison]:
    """Time and memory; what counts is the slowest process, and the one that takes most."""
    threads = NUM_CORES // num_processes
    who = (
        f"{num_processes} process{'es' if num_processes > 1 else ''}, {threads} thread{'s' if threads > 1 else ''} each"
    )
    shared: dict[str, Any] = {
        "ours": PRODUCT,
        "less_is_better": True,
        "input": f"{num_images:,} images x {measured[0]['num_texts']:,} captions, {EMBED_DIM} dimensions; {who}",
    }
    # A loaded machine keeps processes waiting, not computing: the processor's time is told beside the clock's.
    seconds, busy = (
        {
            name: [worst(at_once) for at_once in zip(*(each[clock][name] for each in measured), strict=True)]
            for name in (PRODUCT, RANKS)
        }
        for clock, worst in (("seconds", max), ("busy", sum))
    )
    peaks = {RANKS: [each["peak_bytes"] / 2**20 for each in measured]}
    return [
        compare(f"All ranks both ways, {who}: time", seconds, unit="s", **shared),
        compare(f"All ranks both ways, {who}: processor time", busy, unit="s, all processes together", **shared),
        compare(
            f"All ranks both ways, {who}: memory", peaks, unit="MiB above the features", **shared | {"ours": RANKS}
        ),
    ]


def _together(num_processes: int, num_images: int, rounds: int) -> list[dict[str, Any]]:
    """What the processes of one group measured, in rank order."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(NUM_CORES // num_processes)}
    with tempfile.TemporaryDirectory() as folder:
        sizes = [str(n) for n in (num_processes, num_images, rounds)]
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.ranks", "measure", str(rank), *sizes, f"{folder}/meeting"],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(num_processes)
        ]
        outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise RuntimeError(f"a process ended with an error: {[process.returncode for process in processes]}")
    return [json.loads(output.strip().splitlines()[-1]) for output in outputs]


def _measure(rank: int, num_processes: int, num_images: int, rounds: int, meeting: str) -> dict[str, Any]:
    """Runs in a process of its own."""
    cores = sorted(os.sched_getaffinity(0))
    if num_processes > 1:
        os.sched_setaffinity(0, cores[rank : rank + 1])
    import torch

    from core.distributed import barrier, leave_group
    from eval.ranks import retrieval_ranks

    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=num_processes)
    retrieval_ranks(_features(200))  # loads code, starts matrix libraries
    features = _features(num_images)
    peak_bytes = 0

    def count() -> None:
        nonlocal peak_bytes
        peak_bytes = max(peak_bytes, peak_above(lambda: retrieval_ranks(features))[1])

    work: dict[str, Callable[[], None]] = {PRODUCT: _product(features, rank, num_processes), RANKS: count}
    seconds: dict[str, list[float]] = {name: [] for name in work}
    busy: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, act in work.items():
            barrier()
            start, busy_before = time.perf_counter(), time.process_time()
            act()
            seconds[name].append(time.perf_counter() - start)
            busy[name].append(time.process_time() - busy_before)
    barrier()
    leave_group()
    return {"seconds": seconds, "busy": busy, "peak_bytes": peak_bytes, "num_texts": len(features.texts)}


def _product(features: Any, rank: int, num_processes: int) -> Callable[[], None]:
    """The tiles that this rank would count, multiplied."""
    import torch

    from eval.counting import CPU_TILE as tile

    images = torch.from_numpy(features.images).split(tile.images)
    strips = torch.from_numpy(features.texts).split(tile.texts)[rank::num_processes]
    room = torch.empty(tile.images * tile.texts)

    def multiply() -> None:
        for strip in strips:
            for block in images:
                torch.mm(block, strip.T, out=room[: len(block) * len(strip)].view(len(block), len(strip)))

    return multiply


def _features(num_images: int, seed: int = 0) -> Any:
    """Captions around their image, as far from it as a trained encoder puts them."""
    from eval.metrics import FeatureSet

    random = np.random.default_rng(seed)
    counts = np.full(num_images, 5)
    counts[random.choice(num_images, MORE_CAPTIONS * num_images // NUM_IMAGES, replace=False)] += 1
    image_of_text = np.repeat(np.arange(num_images), counts)
    images = random.standard_normal((num_images, EMBED_DIM), dtype=np.float32)
    texts = 5 * random.standard_normal((len(image_of_text), EMBED_DIM), dtype=np.float32)
    for start in range(0, len(texts), 4096):  # in parts: what is freed here would be used again unseen
        texts[start : start + 4096] += images[image_of_text[start : start + 4096]]
    for rows in (*np.array_split(images, 64), *np.array_split(texts, 64)):
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return FeatureSet(images, texts, image_of_text)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["measure", rank, num_processes, num_images, rounds, meeting]:
            print(json.dumps(_measure(int(rank), int(num_processes), int(num_images), int(rounds), meeting)))
        case arguments:
            main(arguments)
