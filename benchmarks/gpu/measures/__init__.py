"""Every measurement, the most valuable first: they are made in this order for as long as the time lasts."""

from __future__ import annotations

from benchmarks.gpu.measure import Measure
from benchmarks.gpu.measures.captions import captions
from benchmarks.gpu.measures.losses import many_pairs, objectives
from benchmarks.gpu.measures.pictures import device_pixels, gpu_decoding
from benchmarks.gpu.measures.resuming import checkpoint_pause, resumed, resumed_deterministic
from benchmarks.gpu.measures.retrieval import ranks
from benchmarks.gpu.measures.speed import (
    USUAL,
    against_plain,
    fp16,
    heavy_augmentation,
    large_batch,
    memory,
    small_batch,
    usual,
)
from benchmarks.gpu.measures.suite import gpu_tests
from benchmarks.gpu.measures.watching import profile, synchronisations

MEASURES = (
    Measure(
        "gpu_tests",
        "The tests with the mark `gpu`",
        "Every one passes, none skips.",
        lambda f: f["exit_code"] == 0 and f["passed"] > 0 and not (f["failed"] or f["errors"] or f["skipped"]),
        60, gpu_tests, reads_shards=False,
    ),
    Measure(
        USUAL,
        "ResNet-50, 224 px, bf16, channels_last, compiled, batches of 1,024",
        "At least 2,500 images/s; less than 2 % of the time waiting for data.",
        lambda f: f["images_per_s"] >= 2500 and f["wait_share"] < 0.02,
        100, usual,
    ),
    Measure(
        "synchronisations",
        "Waits of the host for the device in a step between log lines, by place",
        "None.",
        lambda f: f["per_step"] == 0,
        60, synchronisations, needs_gpu=True,
    ),
    Measure(
        "resume_deterministic",
        "A resumed run against an unbroken one, with `deterministic`",
        "Every tensor of weights and moments is the same to the bit.",
        lambda f: f["resumed_differ"] == 0,
        60, resumed_deterministic, holds_everywhere=True,
    ),
    Measure(
        "resume",
        "A resumed run against an unbroken one, without `deterministic`; and a second unbroken one",
        "It differs by no more than twice what two unbroken runs differ by; on a CPU by nothing.",
        lambda f: f["resumed_mean_difference"] <= 2 * f["again_mean_difference"],
        80, resumed, holds_everywhere=True,
    ),
    Measure(
        "plain_loop",
        "The same training, and a plain loop in open_clip's manner, batches of 1,024",
        "Ours is at least as fast.",
        lambda f: f["ours_over_plain"] >= 1,
        120, against_plain,
    ),
    Measure(
        "train_4096",
        "Batches of 4,096 in 4 pieces (features first, then gradients)",
        "At least 0.65 of the usual speed: the forward pass is made twice, which is 4/3 of the work.",
        lambda f: f["over_usual"] >= 0.65,
        110, large_batch,
    ),
    Measure(
        "train_256",
        "Batches of 256",
        "At least 0.85 of the usual speed.",
        lambda f: f["over_usual"] >= 0.85,
        90, small_batch,
    ),
    Measure(
        "ranks",
        "Ranks of 40,504 pictures and 202,654 captions, both directions",
        "Within 10 s, and no rank off by more than 5 from counting in float64 (near ties).",
        lambda f: f["seconds"] <= 10 and f["largest_difference"] <= 5,
        40, ranks, reads_shards=False,
    ),
    Measure(
        "objectives",
        "Every objective at 8,192 pairs, forward and backward",
        "Each within 0.25 s and 1 GiB above its features, and finite.",
        lambda f: f["slowest_s"] <= 0.25 and f["most_mib"] <= 1024 and f["all_finite"],
        30, objectives, reads_shards=False,
    ),
    Measure(
        "many_pairs",
        "`infonce` and `siglip` at 32,768 and 65,536 pairs",
        "Memory grows with the batch, not its square: at most 2.2 times for twice the pairs. Finite.",
        lambda f: f["most_memory_growth"] <= 2.2 and f["all_finite"],
        40, many_pairs, reads_shards=False,
    ),
    Measure(
        "checkpoint_pause",
        "How long a checkpoint holds the training up",
        "Never longer than 2 s.",
        lambda f: f["longest_pause_s"] <= 2,
        40, checkpoint_pause,
    ),
    Measure(
        "train_heavy",
        "The usual training with crops, flips, colours, grey and blur on the device",
        "At least 0.9 of the usual speed, less than 2 % waiting.",
        lambda f: f["over_usual"] >= 0.9 and f["wait_share"] < 0.02,
        90, heavy_augmentation,
    ),
    Measure(
        "fp16",
        "The usual training in fp16 with loss scaling",
        "At least 0.9 of the speed in bf16, the loss falls, at most 5 steps are lost to finding the scale.",
        lambda f: f["over_usual"] >= 0.9 and f["last_loss"] < f["first_loss"] and f["nonfinite_steps"] <= 5,
        90, fp16, needs_gpu=True,
    ),
    Measure(
        "memory",
        "Peak memory against the batch size, not compiled",
        "A straight line within 5 %; in 4 pieces at most half of the largest.",
        lambda f: f["farthest_from_a_line"] <= 0.05 and f["pieces_over_whole"] <= 0.5,
        100, memory,
    ),
    Measure(
        "captions",
        "Embedding captions with a BERT of MiniLM's shape",
        "At least 10,000 captions/s in fp32.",
        lambda f: f["fp32_captions_per_s"] >= 10_000,
        50, captions, reads_shards=False,
    ),
    Measure(
        "device_pixels",
        "Training pictures made on the GPU against those made on the CPU, from the same draws",
        "No pixel is off by more than 0.001 of 255 levels.",
        lambda f: f["largest_difference_levels"] <= 0.001,
        30, device_pixels, needs_gpu=True,
    ),
    Measure(
        "profile",
        "A trace of three usual steps (in traces.zip), and the kernels that take most of it",
        "The device is busy for at least 95 % of the time.",
        lambda f: f["busy_share"] >= 0.95,
        90, profile,
    ),
    Measure(
        "gpu_decoding",
        "The stored JPEGs decoded on the GPU by torchcodec",
        "On average within 1 level of the loader's own decoder.",
        lambda f: f["mean_difference_levels"] <= 1,
        30, gpu_decoding, needs_gpu=True,
    ),
)  # fmt: skip
BY_NAME = {measure.name: measure for measure in MEASURES}
