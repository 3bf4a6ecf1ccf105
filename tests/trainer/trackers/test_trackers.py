"""Trackers: `metrics.csv` is whole after any kill, and wandb shows it without a gap or a repeat."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from core.errors import ConfigError, DamagedError
from trainer.trackers import wandb_tracker
from trainer.trackers.metrics_csv import MetricsCsv, read_metrics, read_pictures
from trainer.trackers.opening import open_trackers
from trainer.trackers.tracker import RunIdentity, RunTrackers, TrackingConfig
from trainer.trackers.wandb_tracker import choose_mode, open_wandb

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _no_wandb_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")


def steps_of(path: Path) -> list[int]:
    return [row.step for row in read_metrics(path / "metrics.csv")]


def log_steps(tracker: Any, steps: range) -> None:
    for step in steps:
        tracker.log({"train/loss": 1 / step}, step, step * 32)


def test_rows_come_back_as_they_were_logged_and_new_columns_join_late(tmp_path: Path) -> None:
    tracker = MetricsCsv(tmp_path, None)
    tracker.log({"train/loss": 0.1 + 0.2, "perf/verdict": "decode-bound"}, 1, 32)
    tracker.log({"train/loss": float("nan")}, 2, 64)
    tracker.log({"val/recall, both": 0.5, "train/count": 3}, 2, 64)
    tracker.log({"train/loss": float("inf")}, 3, 96)
    rows = read_metrics(tmp_path / "metrics.csv")
    assert [(r.step, r.samples_seen) for r in rows] == [(1, 32), (2, 64), (3, 96)]
    assert rows[0].metrics == {"train/loss": 0.30000000000000004, "perf/verdict": "decode-bound"}
    assert np.isnan(rows[1].metrics.pop("train/loss")) and rows[1].metrics == {
        "val/recall, both": 0.5,
        "train/count": 3,
    }
    assert rows[2].metrics == {"train/loss": float("inf")}
    header = (tmp_path / "metrics.csv").read_text().splitlines()[0]
    assert header == 'step,samples_seen,time,train/loss,perf/verdict,"val/recall, both",train/count'


def test_a_torn_last_line_is_never_read_and_cut_on_resume(tmp_path: Path) -> None:
    log_steps(MetricsCsv(tmp_path, None), range(1, 5))
    whole = (tmp_path / "metrics.csv").read_bytes()
    last_line = whole.rindex(b"\n", 0, -1) + 1
    for size in range(last_line + 1, len(whole)):
        (tmp_path / "metrics.csv").write_bytes(whole[:size])
        assert steps_of(tmp_path) == [1, 2, 3]
        tracker = MetricsCsv(tmp_path, 3)
        log_steps(tracker, range(4, 6))
        assert steps_of(tmp_path) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(("resumed_from", "kept"), [(None, []), (0, []), (3, [1, 2, 3]), (9, [1, 2, 3, 4, 5])])
def test_rows_and_pictures_after_the_checkpoint_are_cut(tmp_path: Path, resumed_from: int | None, kept: list) -> None:
    tracker = MetricsCsv(tmp_path, None)
    for step in range(1, 6):
        log_steps(tracker, range(step, step + 1))
        tracker.log_image("val/retrieval", tmp_path / f"pictures/{step}.png", "", step)
    MetricsCsv(tmp_path, resumed_from)
    assert steps_of(tmp_path) == [p.step for p in read_pictures(tmp_path)] == kept


def test_a_row_that_does_not_fit_is_named(tmp_path: Path) -> None:
    log_steps(MetricsCsv(tmp_path, None), range(1, 3))
    with open(tmp_path / "metrics.csv", "a") as file:
        file.write("3,96\n")
    with pytest.raises(DamagedError, match=r"metrics.csv: line 4 does not fit the header"):
        read_metrics(tmp_path / "metrics.csv")


def test_without_trackers_nothing_happens(tmp_path: Path) -> None:
    trackers = RunTrackers()
    trackers.log({"a": 1}, 1, 1)
    trackers.log_image("a", tmp_path, "", 1)
    trackers.flush()
    trackers.finish({})


def identity(run_dir: Path) -> RunIdentity:
    return RunIdentity("run0abc", "demo", run_dir, {"seed": 3, "optim": {"lr": 0.1}})


# --- which mode


def test_no_key_means_offline_said_once() -> None:
    said: list[str] = []
    assert choose_mode(TrackingConfig(), said.append) == "offline"
    assert len(said) == 1 and "no wandb key" in said[0] and "offline" in said[0]


def test_a_key_without_network_means_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(wandb_tracker, "getproxies", dict)
    said: list[str] = []
    assert choose_mode(TrackingConfig(), said.append) == "offline" and "no way to 127.0.0.1" in said[0]
    with pytest.raises(ConfigError, match=r"tracking.wandb is online, but there is no way to 127.0.0.1"):
        choose_mode(TrackingConfig(wandb="online"), said.append)


def test_the_config_comes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert choose_mode(TrackingConfig(), print) == "disabled"
    assert choose_mode(TrackingConfig(wandb="offline"), print) == "offline"


def test_a_missing_package_is_said_or_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(wandb_tracker.importlib.util, "find_spec", lambda name: None)  # type: ignore[attr-defined]
    said: list[str] = []
    trackers = open_trackers(TrackingConfig(), identity(tmp_path), resumed_from=None, say=said.append)
    log_steps(trackers, range(1, 3))
    trackers.finish({})
    assert len(said) == 1 and "not installed" in said[0] and steps_of(tmp_path) == [1, 2]
    with pytest.raises(ConfigError, match="wandb is not installed"):
        choose_mode(TrackingConfig(wandb="offline"), said.append)


# --- what wandb holds, read back with wandb's own reader


def wandb_records(run_dir: Path) -> dict[str, list[Any]]:
    """Every record of the run folder's only offline run, by type."""
    (folder,) = (run_dir / "wandb").glob("offline-run-*")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    records: dict[str, list[Any]] = {"folder": [folder]}
    for line in done.stdout.splitlines():
        record = json.loads(line)
        records.setdefault(record["type"], []).append(record[record["type"]])
    return records


def history(records: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    return [record["item"] for record in records["history"]]


_TRAINER = """
import os, signal, sys
from pathlib import Path
from PIL import Image
from trainer.trackers.opening import open_trackers
from trainer.trackers.tracker import RunIdentity, TrackingConfig
run_dir, resumed_from, last, die = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4] == "die"
start = None if resumed_from == "none" else int(resumed_from)
run = RunIdentity("run0abc", "demo", run_dir, {"seed": 3, "optim": {"lr": 0.1}})
trackers = open_trackers(TrackingConfig(tags=("t",)), run, resumed_from=start, say=print)
for step in range((start or 0) + 1, last + 1):
    trackers.log({"train/loss": 1 / step, "perf/verdict": "compute-bound"}, step, step * 32)
    if step % 5 == 0:
        trackers.log({"val/image_to_text/recall@10": step / 100}, step, step * 32)
        picture = run_dir / f"pictures/retrieval-{step}.png"
        picture.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (step, 0, 0)).save(picture)
        trackers.log_image("val/retrieval", picture, f"step {step}", step)
if die:
    os.kill(os.getpid(), signal.SIGKILL)
trackers.finish({"val": {"recall@10": 0.2}})
"""


def test_after_kills_wandb_holds_one_run_with_every_step_once(tmp_path: Path) -> None:
    def process(resumed_from: str, last: int, end: str) -> int:
        command = [sys.executable, "-c", _TRAINER, str(tmp_path), resumed_from, str(last), end]
        return subprocess.run(command, cwd=ROOT, timeout=120).returncode

    assert process("none", 13, "die") == -signal.SIGKILL
    assert process("10", 17, "die") == -signal.SIGKILL  # steps 11 to 13 were logged before, after the checkpoint
    assert process("15", 20, "finish") == 0
    assert steps_of(tmp_path) == list(range(1, 21))

    records = wandb_records(tmp_path)
    rows = history(records)
    assert [row["_step"] for row in rows] == list(range(1, 21))
    assert [row["samples_seen"] for row in rows] == [32 * step for step in range(1, 21)]
    assert [row["train/loss"] for row in rows] == [1 / step for step in range(1, 21)]
    assert {row["_step"]: row["val/image_to_text/recall@10"] for row in rows if row["_step"] % 5 == 0} == {
        5: 0.05, 10: 0.1, 15: 0.15, 20: 0.2
    }  # fmt: skip
    (run,) = records["run"]
    assert run["run_id"] == "run0abc" and run["display_name"] == "demo" and run["tags"] == ["t"]
    assert config_of(run) == {"seed": 3, "optim": {"lr": 0.1}}
    axes = {m.get("glob_name"): m.get("step_metric") for m in records["metric"]}
    assert all(axes[f"{section}/*"] == "samples_seen" for section in ("train", "perf", "val", "check"))
    pictures = [row for row in rows if "val/retrieval.path" in row]
    assert [row["val/retrieval.caption"] for row in pictures] == ["step 5", "step 10", "step 15", "step 20"]
    for row in pictures:
        with Image.open(records["folder"][0] / "files" / row["val/retrieval.path"]) as image:
            assert image.getpixel((0, 0)) == (row["_step"], 0, 0)
    assert any(record["update"].get("val") == {"recall@10": 0.2} for record in records["summary"])


def config_of(run: Mapping[str, Any]) -> dict[str, Any]:
    update = run["config"]["update"]
    pairs = update.items() if isinstance(update, dict) else [(u["key"], json.loads(u["value_json"])) for u in update]
    return {key: value for key, value in pairs if key != "_wandb"}


def test_online_only_steps_that_the_server_lacks_are_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = _Server(starting_step=8)  # it has the steps up to 7
    monkeypatch.setattr("wandb.init", server.init)
    monkeypatch.setattr(wandb_tracker, "_missing_for_online", lambda: None)
    csv = MetricsCsv(tmp_path, None)
    log_steps(csv, range(1, 11))
    (tmp_path / "wandb" / "offline-run-1-run0abc").mkdir(parents=True)
    tracker = open_wandb(TrackingConfig(), identity(tmp_path), print)
    assert tracker is not None and server.given["resume"] == "allow" and server.given["id"] == "run0abc"
    log_steps(tracker, range(11, 13))
    assert server.steps == [8, 9, 10, 11, 12]
    assert not list((tmp_path / "wandb").glob("offline-run-*"))

    server = _Server(starting_step=8)  # resumed from step 5: steps 6 and 7 are trained again
    monkeypatch.setattr("wandb.init", server.init)
    MetricsCsv(tmp_path, 5)
    tracker = open_wandb(TrackingConfig(), identity(tmp_path), print)
    assert tracker is not None
    log_steps(tracker, range(6, 10))
    assert server.steps == [8, 9]


def test_a_refused_key_means_offline_unless_online_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    def refuse(**given: Any) -> Any:
        if given["mode"] == "online":
            raise wandb.errors.CommError("invalid key")
        return _Server(0)

    monkeypatch.setattr("wandb.init", refuse)
    monkeypatch.setattr(wandb_tracker, "_missing_for_online", lambda: None)
    said: list[str] = []
    assert open_wandb(TrackingConfig(), identity(tmp_path), said.append) is not None
    assert said == ["wandb could not start online (invalid key), so this run is kept offline."]
    with pytest.raises(ConfigError, match=r"wandb could not start online: invalid key"):
        open_wandb(TrackingConfig(wandb="online"), identity(tmp_path), said.append)


class _Server:
    """Stands for an online wandb run."""

    def __init__(self, starting_step: int) -> None:
        self.starting_step = starting_step
        self.steps: list[int] = []
        self.given: dict[str, Any] = {}

    def init(self, **given: Any) -> _Server:
        self.given = given
        return self

    def define_metric(self, name: str, **given: Any) -> None:
        pass

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        self.steps.append(step)
