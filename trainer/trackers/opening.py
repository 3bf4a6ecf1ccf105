"""Opens the trackers of a run, on rank 0."""

from __future__ import annotations

from collections.abc import Callable

from trainer.trackers.metrics_csv import MetricsCsv
from trainer.trackers.tracker import RunTrackers, Tracker, TrackingConfig
from trainer.trackers.wandb_tracker import RunIdentity, open_wandb


def open_trackers(
    config: TrackingConfig, run: RunIdentity, *, resumed_from: int | None, say: Callable[[str], None]
) -> RunTrackers:
    """`metrics.csv` first, cut back to the checkpoint, then wandb, which is filled from it.

    Args:
        resumed_from: step of the checkpoint that the run continues from; None for a start from nothing.
        say: prints one line.
    """
    trackers: list[Tracker] = [MetricsCsv(run.run_dir, resumed_from)]
    wandb_tracker = open_wandb(config, run, say)
    return RunTrackers([*trackers, wandb_tracker] if wandb_tracker else trackers)
