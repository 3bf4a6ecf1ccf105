"""What every tracker can do, the settings, and the one that hands everything to several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

Metric = float | int | str


@dataclass(frozen=True)
class TrackingConfig:
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"  # auto: online with key and network, else offline
    project: str = "shardclip"  # of wandb
    entity: str | None = None  # user or team; None: the account's default
    group: str | None = None  # runs shown together
    tags: tuple[str, ...] = ()  # words that runs are found by
    tensorboard: bool = False  # into run_dir/tensorboard: `tensorboard --logdir runs`


@dataclass(frozen=True)
class RunIdentity:
    """Under which name trackers show the run; the id is the same for every process that continues it."""

    run_id: str
    name: str
    run_dir: Path
    config: Mapping[str, Any]


class Tracker(Protocol):
    """Rank 0 owns it. Steps never go down; several calls may name the same step."""

    def log(self, metrics: Mapping[str, Metric], step: int, samples_seen: int) -> None:
        """Metrics are called as `trainer.telemetry.names` says; a name opens with its section."""

    def log_image(self, key: str, path: Path, caption: str, step: int) -> None:
        """Show a picture file that stays in the run folder under a name of its own (with the step in it)."""

    def flush(self) -> None:
        """Make all that was logged survive the machine; call it before a checkpoint is published.

        The thread that saves calls it, while another one logs.
        """

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Close; `summary` holds the run's final figures."""


class RunTrackers:
    """Hands everything to each tracker in turn; without trackers (other ranks) it does nothing."""

    def __init__(self, trackers: Sequence[Tracker] = ()) -> None:
        self.trackers = tuple(trackers)

    def log(self, metrics: Mapping[str, Metric], step: int, samples_seen: int) -> None:
        for tracker in self.trackers:
            tracker.log(metrics, step, samples_seen)

    def log_image(self, key: str, path: Path, caption: str, step: int) -> None:
        for tracker in self.trackers:
            tracker.log_image(key, path, caption, step)

    def flush(self) -> None:
        for tracker in self.trackers:
            tracker.flush()

    def finish(self, summary: Mapping[str, Any]) -> None:
        for tracker in self.trackers:
            tracker.finish(summary)
