"""Speed and memory of trainings at several batch sizes, augmentations and precisions."""

from __future__ import annotations

import numpy as np

from benchmarks.gpu.measure import Context, Figures
from benchmarks.gpu.training import HEAVY, recipe, timed, train
from benchmarks.run_figures import speed_of

USUAL = "train_1024"  # what others are compared with
PIECES = 4  # of the largest batch
_MEMORY_STEPS = 4


def usual(context: Context) -> Figures:
    """The middle batch size."""
    return timed(context, "usual", context.size.batch_sizes[1])


def small_batch(context: Context) -> Figures:
    """The smallest batch size."""
    return _beside_usual(context, timed(context, "small", context.size.batch_sizes[0]))


def large_batch(context: Context) -> Figures:
    """The largest batch size, in pieces whose features are computed twice."""
    return _beside_usual(context, timed(context, "large", context.size.batch_sizes[2], accumulate=PIECES))


def heavy_augmentation(context: Context) -> Figures:
    """Crops, flips, colours, grey and blur as SimCLR has them."""
    return _beside_usual(context, timed(context, "heavy", context.size.batch_sizes[1], augment=HEAVY))


def fp16(context: Context) -> Figures:
    """Half precision with loss scaling, and the steps that it lost to infinities."""
    from trainer.telemetry import names
    from trainer.trackers.metrics_csv import METRICS, read_metrics

    figures = _beside_usual(context, timed(context, "fp16", context.size.batch_sizes[1], precision="fp16"))
    rows = [row.metrics for row in read_metrics(context.work / "fp16" / METRICS) if names.LOSS in row.metrics]
    losses = [float(row[names.LOSS]) for row in rows]
    lost = int(rows[-1][names.NONFINITE_STEPS])
    return figures | {"first_loss": losses[0], "last_loss": losses[-1], "nonfinite_steps": lost}


def against_plain(context: Context) -> Figures:
    """The same work by a plain loop, and ours."""
    from benchmarks.gpu.plain_loop import train_plainly

    ours = _usual(context)
    plain = train_plainly(context, context.size.batch_sizes[1])
    return {
        "ours_images_per_s": ours["images_per_s"],
        "ours_wait_share": ours["wait_share"],
        **{f"plain_{name}": value for name, value in plain.items()},
        "ours_over_plain": ours["images_per_s"] / plain["images_per_s"],
    }


def memory(context: Context) -> Figures:
    """Peak memory at rising batch sizes, how straight its line is, and what pieces save."""
    sizes = context.size.memory_batch_sizes
    rows = [{"batch_size": size, "pieces": 1, "peak_memory_gib": _peak(context, size, 1)} for size in sizes]
    largest = sizes[-1]
    in_pieces = _peak(context, largest, PIECES)
    rows.append({"batch_size": largest, "pieces": PIECES, "peak_memory_gib": in_pieces})
    peaks = [row["peak_memory_gib"] for row in rows[:-1]]
    slope, base = np.polyfit(sizes, peaks, 1)
    off = max(abs(base + slope * size - peak) / peak for size, peak in zip(sizes, peaks))
    return {
        "mib_per_image": 1024 * slope,
        "farthest_from_a_line": off,
        "pieces_over_whole": in_pieces / peaks[-1],
        "peaks": rows,
    }


def _peak(context: Context, batch_size: int, pieces: int) -> float:
    name = f"memory-{batch_size}-{pieces}"
    values = recipe(
        context, context.work / name, batch_size, _MEMORY_STEPS, accumulate=pieces, model={"compile": False}
    )
    return speed_of(train(context, name, values), 0)["peak_memory_gib"]


def _beside_usual(context: Context, figures: Figures) -> Figures:
    return figures | {"over_usual": figures["images_per_s"] / _usual(context)["images_per_s"]}


def _usual(context: Context) -> Figures:
    """The usual training's figures, measured before or now."""
    return dict(context.earlier.get(USUAL) or usual(context))
