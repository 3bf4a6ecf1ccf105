"""Opens the trackers of a run, on rank 0."""

from __future__ import annotations

from collections.abc import Callable

from trainer.trackers.metrics_csv import MetricsCsv
from trainer.trackers.tensorboard_tracker import expect_tensorboard, open_tensorboard
from trainer.trackers.tracker import RunIdentity, RunTrackers, Tracker, TrackingConfig
from trainer.trackers.wandb_tracker import open_wandb


def open_trackers(
    config: TrackingConfig, run: RunIdentity, *, resumed_from: int | None, say: Callable[[str], None]
) -> RunTrackers:
    """`metrics.csv` first, cut back to the checkpoint, then those that are filled from it: wandb, TensorBoard.

    Args:
        resumed_from: step of the checkpoint that the run continues from; None for a start from nothing.
        say: prints one line.
    """
    trackers: list[Tracker] = [MetricsCsv(run.run_dir, resumed_from)]
    if (wandb_tracker := open_wandb(config, run, say)) is not None:
        trackers.append(wandb_tracker)
    if config.tensorboard:
        trackers.append(open_tensorboard(run))
    return RunTrackers(trackers)


def check_trackers(config: TrackingConfig) -> None:
    """Raise where a tracker is asked for that is not installed.

    Raises:
        ConfigError: says how to get it.
    """
    if config.tensorboard:
        expect_tensorboard()
