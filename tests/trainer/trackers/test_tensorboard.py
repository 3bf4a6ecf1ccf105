"""TensorBoard: what its own reader finds in the event files, after kills too, and where one looks on meanwhile."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import gloo
import pytest
from PIL import Image
from training_runs import SMALL_TOWER, recipe, train_worker

from core.errors import ConfigError
from trainer.trackers import tensorboard_tracker
from trainer.trackers.metrics_csv import MetricsCsv, read_metrics
from trainer.trackers.opening import check_trackers, open_trackers
from trainer.trackers.tensorboard_tracker import open_tensorboard
from trainer.trackers.tracker import RunIdentity, TrackingConfig

pytest.importorskip("tensorboard")
ROOT = Path(__file__).parents[3]
CONFIG = TrackingConfig(wandb="disabled", tensorboard=True)


def reader(run_dir: Path) -> Any:
    """TensorBoard's own, that keeps every point."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    kinds = ("scalars", "images", "tensors")
    found = EventAccumulator(str(run_dir / "tensorboard"), size_guidance=dict.fromkeys(kinds, 0))
    found.Reload()
    return found


def points(found: Any, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in found.Scalars(tag)]


def texts(found: Any, tag: str) -> list[tuple[int, str]]:
    return [(e.step, e.tensor_proto.string_val[0].decode()) for e in found.Tensors(f"{tag}/text_summary")]


def identity(run_dir: Path) -> RunIdentity:
    return RunIdentity("run0abc", "demo", run_dir, {"seed": 3, "optim": {"lr": 0.1}})


def single(value: float) -> float:
    """As TensorBoard keeps it: in float32."""
    import numpy as np

    return float(np.float32(value))


def test_rows_texts_and_pictures_are_found_again(tmp_path: Path) -> None:
    trackers = open_trackers(CONFIG, identity(tmp_path), resumed_from=None, say=print)
    trackers.log({"train/loss": 0.3, "perf/verdict": "compute-bound", "train/nonfinite_steps": 0}, 1, 32)
    trackers.log({"train/loss": float("nan")}, 2, 64)
    trackers.log({"val/image_to_text/recall@10": 0.5}, 2, 64)
    picture = tmp_path / "pictures" / "sheet.jpg"
    picture.parent.mkdir()
    Image.new("RGB", (24, 16), (200, 0, 0)).save(picture)
    trackers.log_image("val/retrieval", picture, "a sheet", 2)
    trackers.finish({"val/image_to_text/recall@10": 0.5})

    found = reader(tmp_path)
    assert found.Tags()["scalars"] == [
        "train/loss", "train/nonfinite_steps", "samples_seen", "val/image_to_text/recall@10"
    ]  # fmt: skip
    losses = points(found, "train/loss")
    assert losses[0] == (1, single(0.3)) and losses[1][0] == 2 and math.isnan(losses[1][1])
    assert points(found, "samples_seen") == [(1, 32), (2, 64)]
    assert points(found, "val/image_to_text/recall@10") == [(2, 0.5)]
    assert texts(found, "perf/verdict") == [(1, "compute-bound")]
    assert texts(found, "val/retrieval/caption") == [(2, "a sheet")]
    (config,) = texts(found, "config")
    assert "    seed: 3\n    optim:\n      lr: 0.1\n" in config[1]
    assert "recall@10: 0.5" in texts(found, "summary")[0][1]
    (image,) = found.Images("val/retrieval")
    assert (image.step, image.width, image.height) == (2, 24, 16)
    assert image.encoded_image_string == picture.read_bytes()


_TRAINER = """
import os, signal, sys
from pathlib import Path
from trainer.trackers.opening import open_trackers
from trainer.trackers.tracker import RunIdentity, TrackingConfig
run_dir, resumed_from, last, die = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4] == "die"
start = None if resumed_from == "none" else int(resumed_from)
config = TrackingConfig(wandb="disabled", tensorboard=True)
trackers = open_trackers(config, RunIdentity("run0abc", "demo", run_dir, {}), resumed_from=start, say=print)
for step in range((start or 0) + 1, last + 1):
    trackers.log({"train/loss": 1 / step}, step, step * 32)
if die:
    os.kill(os.getpid(), signal.SIGKILL)
trackers.finish({})
"""


def test_after_kills_every_step_stands_once_and_at_its_time(tmp_path: Path) -> None:
    def process(resumed_from: str, last: int, end: str) -> int:
        command = [sys.executable, "-c", _TRAINER, str(tmp_path), resumed_from, str(last), end]
        return subprocess.run(command, cwd=ROOT, timeout=120).returncode

    assert process("none", 13, "die") == -signal.SIGKILL
    assert process("10", 17, "die") == -signal.SIGKILL  # steps 11 to 13 were logged before, after the checkpoint
    assert process("15", 20, "finish") == 0
    files = sorted((tmp_path / "tensorboard").iterdir())
    assert [path.stat().st_size > 0 for path in files] == [False, False, True], "one file holds all of it"
    found = reader(tmp_path)
    assert points(found, "train/loss") == [(step, single(1 / step)) for step in range(1, 21)]
    assert points(found, "samples_seen") == [(step, 32 * step) for step in range(1, 21)]
    times = {row.step: row.time for row in read_metrics(tmp_path / "metrics.csv")}
    for event in found.Scalars("train/loss"):
        assert abs(event.wall_time - times[event.step]) < 1, "a replayed point keeps the time when it was measured"


def test_a_tensorboard_that_looks_on_forgets_what_is_taken_again(tmp_path: Path) -> None:
    csv = MetricsCsv(tmp_path, None)
    first = open_tensorboard(identity(tmp_path))
    for tracker in (csv, first):
        for step in range(1, 9):
            tracker.log({"train/loss": float(step)}, step, step)
    first.flush()
    looking = reader(tmp_path)
    assert [step for step, _ in points(looking, "train/loss")] == list(range(1, 9))
    first.finish({})
    MetricsCsv(tmp_path, 5)
    again = open_tensorboard(identity(tmp_path))
    for step in range(6, 10):
        again.log({"train/loss": 10.0 * step}, step, step)
    again.finish({})
    looking.Reload()
    expected = [(step, float(step)) for step in range(1, 6)] + [(step, 10.0 * step) for step in range(6, 10)]
    assert points(looking, "train/loss") == expected == points(reader(tmp_path), "train/loss")


def test_a_run_that_turns_it_on_later_has_all_of_its_curve(tmp_path: Path) -> None:
    csv = MetricsCsv(tmp_path, None)
    for step in range(1, 5):
        csv.log({"train/loss": 1 / step}, step, step)
    open_trackers(CONFIG, identity(tmp_path), resumed_from=4, say=print).finish({})
    assert [step for step, _ in points(reader(tmp_path), "train/loss")] == [1, 2, 3, 4]


def test_a_missing_package_is_said_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorboard_tracker.importlib.util, "find_spec", lambda name: None)
    for act in (lambda: check_trackers(CONFIG), lambda: open_tensorboard(identity(tmp_path / "run"))):
        with pytest.raises(ConfigError, match=r"tensorboard is not installed.*pip install 'shardclip\[tensorboard\]'"):
            act()
    assert not (tmp_path / "run").exists()
    check_trackers(TrackingConfig())


def test_a_training_run_writes_its_curve(tmp_path: Path) -> None:
    tracking = {"wandb": "disabled", "tensorboard": True}
    values = recipe(tmp_path, model=SMALL_TOWER, epochs=1, tracking=tracking, data={"val": []}, objective="nt_xent")
    assert gloo.run(1, train_worker, values) == [0]
    measured = {row.step: row.metrics["train/loss"] for row in read_metrics(tmp_path / "run/metrics.csv") if row.step}
    assert points(reader(tmp_path / "run"), "train/loss") == [(n, single(float(x))) for n, x in measured.items()]
