"""The one door to TensorBoard: curves and pictures of a run in `RUN/tensorboard`, each step once, whatever happened.

`metrics.csv` is the truth and TensorBoard a view of it. A killed process takes its unwritten events with it, and a
resumed one takes steps again. So each process begins a fresh file that holds the run from its first step, and the
files before it are emptied. A TensorBoard that is looking on is told to forget what it has read (`purge_step`); it
would not come to the new file if the one that it reads were gone.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.config import dump_yaml
from core.errors import ConfigError
from trainer.trackers.metrics_csv import history
from trainer.trackers.tracker import Metric, RunIdentity

FOLDER = "tensorboard"
_EVENTS = "events.out.tfevents.*"
_FLUSH_S = 10  # seconds until what was logged can be seen


def expect_tensorboard() -> None:
    """Raise where it is not installed.

    Raises:
        ConfigError: says the command.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise ConfigError(
            "tracking.tensorboard is true, but tensorboard is not installed. `pip install 'shardclip[tensorboard]'`, "
            "or leave it out."
        )


def open_tensorboard(run: RunIdentity) -> TensorBoardTracker:
    """A tracker that already holds every row and picture of the run folder.

    Raises:
        ConfigError: tensorboard is not installed.
    """
    expect_tensorboard()
    tracker = TensorBoardTracker(run)
    for step, row, pictures in history(run.run_dir):
        if row is not None:
            tracker.write(row.metrics, step, row.samples_seen, row.time)
        for picture in pictures:
            tracker.log_image(picture.key, picture.path, picture.caption, step)
    tracker.flush()
    return tracker


class TensorBoardTracker:
    """One event file; the x-axis is the step, and `samples_seen` a curve of its own."""

    def __init__(self, run: RunIdentity) -> None:
        from torch.utils.tensorboard import SummaryWriter  # not every machine has it

        folder = run.run_dir / FOLDER
        for superseded in folder.glob(_EVENTS):
            os.truncate(superseded, 0)
        self._writer = SummaryWriter(str(folder), purge_step=0, flush_secs=_FLUSH_S)
        self._last_step = -1
        self._writer.add_text("config", _as_code(dump_yaml(run.config)), 0)

    def log(self, metrics: Mapping[str, Metric], step: int, samples_seen: int) -> None:
        self.write(metrics, step, samples_seen, None)

    def write(self, metrics: Mapping[str, Metric], step: int, samples_seen: int, time_s: float | None) -> None:
        """The same, for what was measured at another time (unix seconds); None: now."""
        for name, value in metrics.items():
            if isinstance(value, str):
                self._writer.add_text(name, value, step, time_s)
            else:
                self._writer.add_scalar(name, value, step, time_s)
        if step > self._last_step:  # several calls may name the same step
            self._writer.add_scalar("samples_seen", samples_seen, step, time_s)
        self._last_step = step

    def log_image(self, key: str, path: Path, caption: str, step: int) -> None:
        from PIL import Image
        from tensorboard.compat.proto.summary_pb2 import Summary

        if not path.exists():
            return
        with Image.open(path) as picture:
            width, height = picture.size
        # The file itself, not its pixels: a sheet of photographs is ten times as large as PNG.
        encoded = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=path.read_bytes())
        file_writer = self._writer._get_file_writer()
        file_writer.add_summary(Summary(value=[Summary.Value(tag=key, image=encoded)]), step)
        if caption:
            self._writer.add_text(f"{key}/caption", caption, step)

    def flush(self) -> None:
        """What is seen by those who look on; what does not reach the disk is given again from `metrics.csv`."""
        self._writer.flush()

    def finish(self, summary: Mapping[str, Any]) -> None:
        if summary:
            self._writer.add_text("summary", _as_code(dump_yaml(summary)), max(self._last_step, 0))
        self._writer.close()


def _as_code(text: str) -> str:
    """As Markdown shows it: indented."""
    return "".join(f"    {line}\n" for line in text.splitlines())
