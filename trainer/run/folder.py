"""A run's folder: who writes in it, what it was started with, on what machine, and what happened.

runs/coco/
  run.json          id, name, state (running, stopped, failed, finished), when it started
  config.yaml       the resolved recipe          environment.json   hardware, versions, commit, command
  metrics.csv       what was measured            events.jsonl       what happened: resumed, spikes, stops
  checkpoints/      results.json                 report.html
  profile/          a trace of some steps, where the recipe asks for one
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import yaml

from core.config import config_diff, dump_yaml, with_defaults
from core.errors import ConfigError, DamagedError, StorageError
from core.journal import append_json, fsync, read_json_lines
from core.locks import lock
from core.places import RUN as RUN_CONTENTS
from core.places import expect_folder_of_ours
from core.storage import publish_bytes, sweep_partials
from trainer.trackers.metrics_csv import METRICS, last_step

RUN, CONFIG, ENVIRONMENT, EVENTS, CHECKPOINTS, PROFILE = (
    "run.json", "config.yaml", "environment.json", "events.jsonl", "checkpoints", "profile",
)  # fmt: skip
State = Literal["running", "stopped", "failed", "finished"]
_TRACES = (RUN, CONFIG, METRICS, CHECKPOINTS)
# Changes of these, and of what is in them, leave a run's curve what it was.
_CURVELESS = ("run_dir", "tracking", "profile", "resume", "log_every", "checkpoint_every", "keep_last", "timeout_s",
              "peer_timeout_s", "data.num_workers", "data.prefetch", "data.cache_dir")  # fmt: skip


@dataclass(frozen=True)
class Parent:
    """The run that another one branched off from, and after which step."""

    run_id: str
    step: int


@dataclass(frozen=True)
class RunFolder:
    """An open run folder, locked by this process.

    Attributes:
        run_id: the same for every process that continues the run; wandb's id too.
        started: when its first process began.
        config_changes: `key: old -> new`, against the process before.
        parent: of a run that went on from an older checkpoint with another recipe: what was measured there after that
            step is not its own.
    """

    path: Path
    run_id: str
    started: str
    config_changes: tuple[str, ...] = ()
    parent: Parent | None = None

    @property
    def name(self) -> str:
        return f"{self.path.name} from step {self.parent.step}" if self.parent else self.path.name

    @property
    def checkpoints(self) -> Path:
        return self.path / CHECKPOINTS


@contextmanager
def open_run_folder(
    path: Path, config: Any, *, environment: Mapping[str, Any], resume: str = "no", resumed_from: int | None = None
) -> Iterator[RunFolder]:
    """Create or continue a run folder and hold its lock; on rank 0 only.

    Args:
        config: the resolved config (a dataclass or a mapping), saved as `config.yaml`.
        environment: what `describe_environment` returned, saved as `environment.json`.
        resume: `no` wants a new folder; `auto` continues the run in it, or starts one; a checkpoint in it
            continues it from there.
        resumed_from: step of the checkpoint that will be continued from. Where more was measured than that, and the
            recipe has changed, it is another run from here on, with an id of its own.

    Raises:
        ConfigError: there is a run in the folder and `resume` does not continue it.
        StorageError: another process holds the folder.
    """
    expect_folder_of_ours(path, "run_dir", RUN_CONTENTS)
    with lock(path / ".lock", f"training run {path.name}"):
        sweep_partials(path)
        found = expect_to_go_on(path, resume)
        run = found or _new_run(path)
        # Of all processes: what was measured is cut back to the checkpoint with every start.
        furthest = max(run.get("furthest_step", -1), last_step(path / METRICS))
        run = {**run, "furthest_step": furthest}
        changes = _config_changes(path, config)
        branches = resumed_from is not None and furthest > resumed_from and _change_the_curve(changes)
        if branches:
            parent = run.get("parent", {})
            if parent.get("step") != resumed_from:  # else it is the same past, whatever began there in between
                parent = {"run_id": run["run_id"], "step": resumed_from}
            run = {**_new_run(path), "parent": parent, "furthest_step": furthest}
        # First: a folder that holds anything else and no run.json is taken for a stranger's. And before the recipe,
        # since a change of it must not be forgotten before the run has its new id.
        publish_bytes(_as_json({**run, "state": "running"}), path / RUN)
        _save_settings(path, config, environment)
        record_event(path, "continued" if found else "started", config_changes=changes)
        if branches:
            record_event(path, "branched off", resumed_from, run_id=run["run_id"], parent=run["parent"]["run_id"])
        parent = Parent(**run["parent"]) if "parent" in run else None
        yield RunFolder(path, run["run_id"], run["started"], tuple(changes), parent)


def expect_to_go_on(path: Path, resume: str) -> dict[str, Any] | None:
    """What `run.json` says of the run in a folder, None where there is none; writes nothing.

    Raises:
        ConfigError: there is one and `resume` does not go on with it, or one of another version.
        DamagedError: `run.json` is damaged.
    """
    found = _found_run(path)
    if found and resume == "no":
        raise ConfigError(_occupied(path, found))
    return found


def note_failure(run_dir: Path, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
    """An exit callback: write into the run folder why a run ended that did not end well; any rank may."""
    if error is not None:
        with suppress(StorageError):  # a full disk takes no note either; the error itself must still reach people
            record_event(run_dir, "failed", error=f"{type(error).__name__}: {error}")
            _write_state(run_dir, "failed")


def set_state(run: RunFolder, state: State) -> None:
    """Write the run's state; a folder that still says `running` without a lock was killed."""
    _write_state(run.path, state)
    record_event(run.path, state)
    flush_events(run.path)


def record_event(run_dir: Path, kind: str, step: int | None = None, **details: Any) -> None:
    """Add what happened to `events.jsonl`; the report shows it."""
    at = {} if step is None else {"step": step}
    append_json(run_dir / EVENTS, {"time": now(), "event": kind, **at, **details})


def flush_events(run_dir: Path) -> None:
    """Make all events survive the machine; call it before a checkpoint is published."""
    fsync(run_dir / EVENTS)


def read_events(run_dir: Path) -> list[dict[str, Any]]:
    """The run's events in order."""
    return read_json_lines(run_dir / EVENTS)


def _found_run(path: Path) -> dict[str, Any] | None:
    try:
        if (path / RUN).exists():
            found: dict[str, Any] = json.loads((path / RUN).read_text())
            return found
    except ValueError:
        raise DamagedError(
            f"{path / RUN}: damaged. Delete it if nothing here is wanted, or choose another run_dir."
        ) from None
    if traces := [name for name in _TRACES if (path / name).exists()]:
        raise ConfigError(
            f"{path}: holds {traces[0]}, but no {RUN}: not a run of this version. Choose another run_dir."
        )
    return None


def _occupied(path: Path, found: Mapping[str, Any]) -> str:
    state = "a run that was cut off" if found["state"] == "running" else f"a {found['state']} run"
    return (
        f"{path}: holds {state} (started {found['started']}). Continue it with resume=auto, or choose another run_dir."
    )


def _new_run(path: Path) -> dict[str, Any]:
    return {"run_id": secrets.token_hex(4), "name": path.name, "started": now()}


def _config_changes(path: Path, config: Any) -> list[str]:
    """How the config differs from the one before, where there was one."""
    if not (path / CONFIG).exists():
        return []
    old, new = yaml.safe_load((path / CONFIG).read_text()), yaml.safe_load(dump_yaml(config))
    old = with_defaults(old, config)  # a key that is newer than the run, and left alone, is no change
    return [line for line in config_diff(old, new) if not line.startswith("resume:")]


def _change_the_curve(changes: Sequence[str]) -> bool:
    """Whether the recipe of before would have gone another way."""
    curveless = tuple(f"{key}{end}" for key in _CURVELESS for end in ":.")
    return any(not line.startswith(curveless) for line in changes)


def _save_settings(path: Path, config: Any, environment: Mapping[str, Any]) -> None:
    """Publish config and environment."""
    if (path / ENVIRONMENT).exists():
        moved = config_diff(json.loads((path / ENVIRONMENT).read_text()), environment)
        moved = [line for line in moved if not line.startswith(("started:", "command:"))]
        if moved:
            record_event(path, "environment changed", changes=moved)
    publish_bytes(dump_yaml(config).encode(), path / CONFIG)
    publish_bytes(_as_json(environment), path / ENVIRONMENT)


def _write_state(run_dir: Path, state: State) -> None:
    known = json.loads((run_dir / RUN).read_text())
    publish_bytes(_as_json({**known, "state": state, "updated": now()}), run_dir / RUN)


def _as_json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
