"""What a finished training says of its own speed: the figures of its metrics.csv after the first steps."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from trainer.telemetry import names
from trainer.trackers.metrics_csv import METRICS, read_metrics


def speed_of(run_dir: Path, warm_steps: int) -> dict[str, float]:
    """Images/s, waiting share, peak memory, and MFU where the device's peak is known, after `warm_steps`.

    Raises:
        RuntimeError: the run logged nothing after them.
    """
    rows = [row.metrics for row in read_metrics(run_dir / METRICS) if row.step > warm_steps]
    speeds = [row for row in rows if names.IMAGES_PER_S in row]
    if not speeds:
        raise RuntimeError(f"{run_dir}: no line of {METRICS} after step {warm_steps}. Train longer.")
    # Windows have equally many steps: their times add up, so speeds have a harmonic mean.
    images_per_s = len(speeds) / sum(1 / float(row[names.IMAGES_PER_S]) for row in speeds)
    figures = {
        "images_per_s": images_per_s,
        "wait_share": fmean(float(row[names.WAIT_SHARE]) for row in speeds),
        "peak_memory_gib": max(float(row[names.PEAK_MEMORY_GIB]) for row in speeds),
    }
    utilisations = [float(row[names.MFU]) for row in speeds if names.MFU in row]
    return figures | ({"mfu": len(utilisations) / sum(1 / mfu for mfu in utilisations)} if utilisations else {})
