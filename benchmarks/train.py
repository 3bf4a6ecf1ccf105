"""Training as users start it, against open_clip's own training script: `python -m benchmarks.train`.

Images/s, share of the step spent waiting for data, MFU. Ours is `launch.train` on a shard set, read from the run's
metrics.csv; open_clip's is `open_clip_train.main` on the same tars, read from its log. Same tower (torchvision's and
timm's ResNet), same head, batch, crops and optimizer. What differs: open_clip runs a text tower (here the smallest that
its script takes; its share is given), ours reads caption embeddings from the shard. On a GPU: ResNet50, 224 px, bf16,
compiled, with the loader workers that `shardclip plan` advises; and a step over 32,768 pairs. On a CPU: ResNet18,
96 px.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.loader_peers.inputs import build_inputs
from benchmarks.measure import ROOT, Comparison, compare, in_own_process, pin, publish, take_turns
from benchmarks.train_open_clip import Job

DATA = ROOT / "data/bench/train"
LARGE_BATCH, LARGE_CHUNKS = 32_768, 32
RECIPE = """
run_dir: {folder}/run
data:
  train: {job.shards}
  num_workers: {job.workers}
global_batch_size: {job.batch_size}
accumulate: {chunks}
epochs: 1000
max_steps: {job.steps}
image_size: {job.image_size}
model:
  tower: {job.tower}
  hidden_dim: {hidden_dim}
  compile: {compile}
augment:
  crop_scale: [0.9, 1.0] # open_clip's, which does not flip
  flip: 0
optim:
  warmup_steps: 0
log_every: {job.log_every}
checkpoint_every: {job.steps}
tracking:
  wandb: disabled
"""
Figures = dict[str, float]  # images_per_s, wait_share


def main(arguments: Sequence[str]) -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if on_gpu else "cpu")
    parser.add_argument("--steps", type=int, help="counted steps of each run")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    if options.device == "cpu":
        pin()
        job, copies = _job("cpu", steps=15, warm_steps=5, workers=1), 1
    else:
        job, copies = _job("cuda", steps=60, warm_steps=30, workers=len(os.sched_getaffinity(0)) - 1), 22
    if options.steps:
        job = replace(job, steps=job.warm_steps + options.steps)
    shown = build_inputs(DATA, copies, ("jpeg",))
    job = replace(job, num_shards=len(list(Path(job.shards).glob("train-*.tar"))))
    comparisons = [_compare(_advised(job) if options.device == "cuda" else job, job, options.rounds, shown)]
    if options.device == "cuda":
        comparisons.append(_large_batch(job, shown))
    publish("train", comparisons, ["shardclip", "open-clip-torch", "timm", "torch", "torchvision"])


def _job(device: str, steps: int, warm_steps: int, workers: int) -> Job:
    size: dict[str, Any] = (
        {"tower": "resnet50", "image_size": 224, "batch_size": 1024, "log_every": 10}
        if device == "cuda"
        else {"tower": "resnet18", "image_size": 96, "batch_size": 64, "log_every": 5}
    )
    return Job(
        shards=str(DATA / "jpeg"), num_shards=0, embed_dim=384, device=device, workers=workers,
        steps=warm_steps + steps, warm_steps=warm_steps, **size,
    )  # fmt: skip


def _compare(ours: Job, theirs: Job, rounds: int, shown: str) -> Comparison:
    """Ours with the workers advised, open_clip's with all that there are."""
    runs = {"shardclip": lambda: _train(ours), "open_clip": lambda: _train_open_clip(theirs)}
    seen: dict[str, list[Figures]] = {name: [] for name in runs}

    def once(name: str) -> float:
        seen[name].append(runs[name]())
        return seen[name][-1]["images_per_s"]

    figures = take_turns({name: lambda name=name: once(name) for name in runs}, rounds, warm_up=False)
    flops, peak, peak_said = _flops(ours), *_peak(ours.device)
    workers = {"shardclip": ours.workers, "open_clip": theirs.workers}
    notes = {
        name: f"waiting for data {100 * fmean(run['wait_share'] for run in row):.2f} % of the step, MFU "
        f"{100 * fmean(run['images_per_s'] for run in row) * flops / peak:.1f} %, {workers[name]} loader workers"
        for name, row in seen.items()
    }
    share = in_own_process("benchmarks.train_open_clip", "text-share", theirs.to_json(), peers=True)["text_share"]
    precision = "bf16, compiled" if ours.device == "cuda" else "float32, one core"
    return compare(
        f"Training {ours.tower} at {ours.image_size} px",
        figures,
        ours="shardclip",
        unit="images/s",
        input=f"{shown}; batches of {ours.batch_size:,}, {precision}, {ours.steps - ours.warm_steps} steps",
        notes=notes,
        text_tower=f"{100 * share:.1f} % of open_clip's forward and backward (1 layer of 64; not counted in its MFU)",
        MFU=f"of {peak / 1e12:.3g} TFLOP/s, {peak_said}; {flops / 1e9:.3g} GFLOP for an image, forward and backward",
        differs="ours has channels_last, augmentation on the device, and on the CPU keeps freed memory "
        "(core/host_memory.py); open_clip has augmentation in its workers and a text tower",
    )


def _train(job: Job, chunks: int = 1) -> Figures:
    """One real run of ours; its own telemetry after the first steps."""
    from benchmarks.run_figures import speed_of

    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "recipe.yaml"
        compiled = str(job.device == "cuda").lower()
        text = RECIPE.format(job=job, folder=folder, chunks=chunks, hidden_dim=2 * job.embed_dim, compile=compiled)
        recipe.write_text(text)
        subprocess.run([sys.executable, "-m", "launch.train", str(recipe)], cwd=ROOT, check=True, stdout=sys.stderr)
        return speed_of(Path(folder) / "run", job.warm_steps)


def _train_open_clip(job: Job) -> Figures:
    return in_own_process("benchmarks.train_open_clip", "run", job.to_json(), peers=True)


def _advised(job: Job) -> Job:
    """The same job with the workers that `shardclip plan` advises for the speed that it has with all of them."""
    from rich.console import Console

    from core.config import Choice
    from shard_builder.config import BuildConfig, ImageConfig
    from shard_builder.estimate import estimate_build

    source = Choice("jsonl", {"file": str(DATA / "images.jsonl")})
    config = BuildConfig(source, str(DATA / "jpeg"), image=ImageConfig(size=256))
    speed = _train(job)["images_per_s"]
    return replace(job, workers=estimate_build(config, speed, Console(stderr=True)).loader_workers(speed))


def _large_batch(job: Job, shown: str) -> Comparison:
    """Steps over 32,768 pairs on one device: features first, gradients in a second pass over the chunks."""
    large = replace(job, batch_size=LARGE_BATCH, steps=3, warm_steps=1, log_every=1)
    figures = _train(large, LARGE_CHUNKS)
    small = _train(job)
    return compare(
        f"One step over {LARGE_BATCH:,} pairs on one device",
        {
            f"{LARGE_BATCH:,} pairs, {LARGE_CHUNKS} chunks": [figures["images_per_s"]],
            f"{job.batch_size:,} pairs, 1 chunk": [small["images_per_s"]],
        },
        ours=f"{LARGE_BATCH:,} pairs, {LARGE_CHUNKS} chunks",
        unit="images/s",
        input=f"{shown}; {job.tower}, {job.image_size} px",
        peak_memory=f"{figures['peak_memory_gib']:.1f} GiB, against {small['peak_memory_gib']:.1f} GiB",
    )


def _flops(job: Job) -> float:
    """Of one image, forward and backward, counted on our model; open_clip's image tower and head are the same."""
    from trainer.models import ModelConfig, build_model
    from trainer.telemetry.flops import flops_per_image

    config = ModelConfig(tower=job.tower, hidden_dim=2 * job.embed_dim)
    model = build_model(config, job.embed_dim, job.image_size)
    return flops_per_image(model, (3, job.image_size, job.image_size))


def _peak(device: str) -> tuple[float, str]:
    """FLOP/s that MFU is a share of, and where the figure comes from."""
    import torch

    from trainer.telemetry.flops import peak_flops

    if device == "cuda":
        peak = peak_flops(torch.device("cuda"), "bf16")
        if peak is None:
            raise RuntimeError(
                f"the peak of {torch.cuda.get_device_name()} is not in trainer/telemetry/flops.py. Add it."
            )
        return peak, "the data sheet's bf16"
    import time

    torch.set_num_threads(1)
    a, seconds = torch.randn(2048, 2048), []
    for _ in range(6):
        start = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - start)
    return 2 * 2048**3 / min(seconds), "this core's best float32 product of 2048 x 2048"


if __name__ == "__main__":
    main(sys.argv[1:])
