"""The one door to wandb: dashboards of a run, online or offline, continued after a kill without a gap or a repeat.

`metrics.csv` is the truth and wandb a view of it. A killed process takes wandb's unwritten records with it (its core
writes in blocks), so a resumed run does not trust what wandb kept. Offline, the superseded folders go and every row
up to the checkpoint is given again to a fresh one, under the same run id. Online, the server says which step it has,
and only the later ones are sent. A run that goes on from an older checkpoint with another recipe has an id of its own
(`trainer.run.folder`) and names its parent in its config (`continues`): what the server has of the parent's later steps
is never taken for its own. Rewinding the parent on the server is not needed for that, and not every server can.
"""

from __future__ import annotations

import importlib.util
import netrc
import os
import shutil
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from core.errors import ConfigError
from trainer.telemetry.names import SECTIONS
from trainer.trackers.metrics_csv import history
from trainer.trackers.tracker import Metric, RunIdentity, TrackingConfig

_CONNECT_TIMEOUT_S = 3.0
_KEYS = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")


def open_wandb(config: TrackingConfig, run: RunIdentity, say: Callable[[str], None]) -> WandbTracker | None:
    """A tracker that already holds every row of the run folder's `metrics.csv`; None when wandb is off.

    Args:
        say: prints one line; why wandb is offline or absent is said once.

    Raises:
        ConfigError: `online` or `offline` was asked for and cannot be had.
    """
    mode = choose_mode(config, say)
    if mode == "disabled":
        return None
    tracker = _start(config, run, mode, say)
    replay(run.run_dir, tracker)
    return tracker


def choose_mode(config: TrackingConfig, say: Callable[[str], None]) -> str:
    """`online`, `offline` or `disabled`; for `auto` the environment variable WANDB_MODE, then what the machine can."""
    wanted = config.wandb if config.wandb != "auto" else os.environ.get("WANDB_MODE", "auto")
    if wanted == "disabled":
        return "disabled"
    if importlib.util.find_spec("wandb") is None:
        if wanted in ("online", "offline"):
            raise ConfigError(
                f"tracking.wandb is {wanted}, but wandb is not installed. `pip install wandb`, or use auto."
            )
        say("wandb is not installed: metrics go to metrics.csv only (pip install wandb; set tracking.wandb=disabled).")
        return "disabled"
    if wanted in ("offline", "dryrun"):
        return "offline"
    missing = _missing_for_online()
    if missing is None:
        return "online"
    if wanted == "online":
        raise ConfigError(
            f"tracking.wandb is online, but there is {missing}. Mend that, or set tracking.wandb=offline."
        )
    say(f"wandb: {missing}, so this run is kept offline; `wandb sync RUN_DIR/wandb/offline-run-*` sends it later.")
    return "offline"


class WandbTracker:
    """One wandb run; steps that it holds already are passed over."""

    def __init__(self, config: TrackingConfig, run: RunIdentity, mode: str) -> None:
        import wandb  # an import of seconds, and not every machine has it

        run.run_dir.mkdir(parents=True, exist_ok=True)
        if mode == "offline":
            _remove_superseded(run)
        self._wandb = wandb
        self._run = wandb.init(
            dir=run.run_dir,
            id=run.run_id,
            name=run.name,
            project=config.project,
            entity=config.entity,
            group=config.group,
            tags=list(config.tags),
            config=dict(run.config),
            mode=mode,  # type: ignore[arg-type]
            # Offline, the new folder holds the run from its first step and must replace what was synced before.
            resume="allow" if mode == "online" else None,
            settings=wandb.Settings(console="off", silent=True),
        )
        self._first_step = self._run.starting_step  # 0, or the one after the server's last
        self._run.define_metric("samples_seen", hidden=True)
        for section in SECTIONS:
            self._run.define_metric(f"{section}/*", step_metric="samples_seen")
        if mode == "online":
            _remove_superseded(run)  # only now: what they hold is on its way to the server

    @property
    def run_id(self) -> str:
        return str(self._run.id)

    def log(self, metrics: Mapping[str, Metric], step: int, samples_seen: int) -> None:
        if step >= self._first_step:
            self._run.log({**metrics, "samples_seen": samples_seen}, step=step)

    def log_image(self, key: str, path: Path, caption: str, step: int) -> None:
        if step >= self._first_step and path.exists():
            self._run.log({key: self._wandb.Image(str(path), caption=caption)}, step=step)

    def flush(self) -> None:
        """Nothing to do: what wandb has not written yet is given again from `metrics.csv`."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        self._run.summary.update(dict(summary))
        self._run.finish()


def replay(run_dir: Path, tracker: WandbTracker) -> None:
    """Give a tracker every row and picture of a run folder, in the order of steps."""
    for step, row, pictures in history(run_dir):
        if row is not None:
            tracker.log(row.metrics, step, row.samples_seen)
        for picture in pictures:
            tracker.log_image(picture.key, picture.path, picture.caption, step)


def _start(config: TrackingConfig, run: RunIdentity, mode: str, say: Callable[[str], None]) -> WandbTracker:
    import wandb

    try:
        return WandbTracker(config, run, mode)
    except wandb.errors.Error as error:
        reason = " ".join(str(error).split())
        if mode == "offline" or config.wandb == "online":
            raise ConfigError(
                f"wandb could not start {mode}: {reason}. Mend that, or change tracking.wandb."
            ) from error
        say(f"wandb could not start online ({reason}), so this run is kept offline.")
        return WandbTracker(config, run, "offline")


def _missing_for_online() -> str | None:
    address = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    if not any(os.environ.get(name) for name in _KEYS) and not _netrc_knows(address.hostname or ""):
        return "no wandb key (`wandb login` or WANDB_API_KEY)"
    return None if _answers(address.scheme, address.hostname or "", address.port) else f"no way to {address.hostname}"


def _netrc_knows(host: str) -> bool:
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _answers(scheme: str, host: str, port: int | None) -> bool:
    proxy = getproxies().get(scheme)
    if proxy and not proxy_bypass(host):
        address = urlsplit(proxy)
        host, port, scheme = address.hostname or host, address.port, address.scheme
    try:
        socket.create_connection((host, port or (443 if scheme == "https" else 80)), _CONNECT_TIMEOUT_S).close()
    except OSError:
        return False
    return True


def _remove_superseded(run: RunIdentity) -> None:
    for folder in (run.run_dir / "wandb").glob(f"offline-run-*-{run.run_id}"):
        shutil.rmtree(folder)
