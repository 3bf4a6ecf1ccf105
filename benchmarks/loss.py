"""Time and memory of the contrastive loss, forward and backward, against batch size: `python -m benchmarks.loss`.

Ours as the trainer calls it (`trainer.step`, gather included) beside open_clip's `ClipLoss` and `SigLipLoss` and plain
InfoNCE; on a GPU Inf-CLIP's kernel, too. One process, and two gloo processes that share the core. Random unit features
of 512 numbers, float32. Each contender's memory is measured in a process of its own, from the smallest batch up.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from benchmarks.measure import Comparison, compare, in_own_process, pin, publish

SIZES = (512, 1024, 2048, 4096, 8192)
GPU_SIZES = (*SIZES, 16384, 32768)
GLOO_SIZES = (2048, 8192)
OURS = "shardclip"
OURS_TRAINED = "shardclip, texts trained"
NOTES = {
    OURS: "as the trainer runs it: stored texts, no gradient for them",
    "open_clip ClipLoss": "local_loss, gather_with_grad; texts trained, as open_clip does",
    "open_clip ClipLoss, texts frozen": "local_loss, gather_with_grad",
    "open_clip SigLipLoss": "another loss: sigmoid of each pair; bidirectional exchange of chunks; texts trained",
    "plain InfoNCE": "two cross-entropies over one matrix; texts trained",
    "Inf-CLIP": "triton kernel, once for each direction; texts trained",
}


def main(arguments: Sequence[str]) -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if on_gpu else "cpu")
    parser.add_argument("--sizes", type=int, nargs="+", help="pairs of the whole batch")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    pin()
    sizes = options.sizes or (GPU_SIZES if options.device == "cuda" else SIZES)
    comparisons = _measure(1, options.device, sizes, options.rounds)
    # NCCL takes one process per GPU: two processes are measured where they can always run.
    comparisons += _measure(2, "cpu", options.sizes or GLOO_SIZES, options.rounds)
    publish("loss", comparisons, ["shardclip", "open-clip-torch", "inf-cl", "torch"])


def _measure(processes: int, device: str, sizes: Sequence[int], rounds: int) -> list[Comparison]:
    """A table of times for each size, and one of memory at the largest, with all sizes in its notes."""
    apart = partial(_apart, processes, device)
    place = "the GPU" if device == "cuda" else "one core" if processes == 1 else "one core, shared; gathered by gloo"
    where = f"{processes} process{'es' if processes > 1 else ''} on {place}"
    times = {size: apart("time", [size], rounds) for size in sizes}
    comparisons = [
        compare(
            f"Loss of {size:,} pairs, {where}: time",
            {name: [1000 * s for s in runs] for name, runs in result["seconds"].items()},
            ours=OURS,
            unit="ms forward + backward",
            input=f"{size:,} pairs x 512, float32",
            less_is_better=True,
            notes=NOTES,
            **result["said"],
        )
        for size, result in times.items()
    ]
    names = list(times[sizes[0]]["seconds"])
    memory = {name: apart("memory", sorted(sizes), name) for name in names}
    peaks = {name: [n / 2**20 for n in found["peak_bytes"]] for name, found in memory.items()}
    saved = {name: [n / 2**20 for n in found["saved_bytes"]] for name, found in memory.items()}
    listed = ", ".join(f"{size:,}" for size in sizes)
    tables = ((peaks, "most memory at once", "MiB above the features"), (saved, "kept for backward", "MiB saved"))
    comparisons += [
        compare(
            f"Loss of {sizes[-1]:,} pairs, {where}: {what}",
            {name: row[-1:] for name, row in table.items()},
            ours=OURS,
            unit=unit,
            input=f"a process; by batch size {listed}: see the last column",
            less_is_better=True,
            notes={name: _growth(sizes, row) for name, row in table.items()},
        )
        for table, what, unit in tables
    ]
    return comparisons


def _growth(sizes: Sequence[int], values: Sequence[float]) -> str:
    listed = ", ".join(f"{value:.3g}" for value in values)
    if len(sizes) < 2:
        return listed
    slope = np.polyfit(np.log(sizes), np.log(np.maximum(values, 2**-10)), 1)[0]
    return f"{listed}; log-log slope {slope:.2f}"


def _apart(processes: int, device: str, task: str, sizes: Sequence[int], what: object) -> dict[str, Any]:
    module, arguments = "benchmarks.loss", ["worker", device, task, ",".join(map(str, sizes)), str(what)]
    if processes > 1:
        arguments = [f"--nproc_per_node={processes}", "--standalone", "-m", module, *arguments]
        module = "torch.distributed.run"
    return in_own_process(module, *arguments, peers=True)


def _worker(device: str, task: str, sizes: Sequence[int], what: str) -> None:
    """One of the processes that measure; the first prints what was found."""
    import torch

    from benchmarks.loss_contenders import agreement, contenders, make_features, memory_of, times_of
    from core.distributed import is_main, world_size

    torch.set_num_threads(1)
    if "WORLD_SIZE" in os.environ:
        torch.distributed.init_process_group("gloo")
    found = contenders(device)
    result: Mapping[str, Any]
    if task == "time":
        features = make_features(sizes[0], device)
        seconds, said = times_of(found, features, int(what)), agreement(found, features)
        if device == "cuda" and "Inf-CLIP" not in found:
            said["Inf-CLIP"] = "not installed (make peers)"
        result = {"seconds": seconds, "said": said}
    else:
        found[what](make_features(8 * world_size(), device))  # loads code, opens connections
        each = [memory_of(found[what], make_features(size, device)) for size in sizes]
        result = {name: [one[name] for one in each] for name in each[0]}
    if is_main():
        print(json.dumps(result))
    if "WORLD_SIZE" in os.environ:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["worker", device, task, sizes, what]:
            _worker(device, task, [int(size) for size in sizes.split(",")], what)
        case arguments:
            main(arguments)
