"""The registry of runs: `runs/registry.csv` has a line per run, and many processes may write it.

It lies beside the runs, and so in a folder that nobody has named: where that is `/`, the home folder, one above it or
one that cannot be written, there is none.
"""

from __future__ import annotations

import csv
import io
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from core.errors import StorageError
from core.locks import lock
from core.places import why_common
from core.storage import publish_bytes, sweep_partials
from trainer.run.folder import State, now

REGISTRY = "registry.csv"
_PATIENCE_S = 30.0


@dataclass(frozen=True)
class RegistryLine:
    """A run's line in `runs/registry.csv`; blank is not known yet."""

    run_id: str
    name: str
    state: State
    started: str = ""
    hours: float | str = ""
    step: int | str = ""
    image_to_text_recall_at_10: float | str = ""
    text_to_image_recall_at_10: float | str = ""
    knn_accuracy: float | str = ""  # of validations with labels
    shards: str = ""  # fingerprint of the training set
    commit: str = ""
    hardware: str = ""
    updated: str = field(default_factory=now)


def why_unregistered(runs_dir: Path) -> str | None:
    """Why runs in this folder have no registry, as a sentence; None where they have one."""
    home = Path(os.path.expanduser("~"))
    if why := why_common(runs_dir, Path.cwd(), home):
        return f"no {REGISTRY}: the run lies in {runs_dir}, {why}"
    if not os.access(runs_dir, os.W_OK | os.X_OK):
        return f"no {REGISTRY}: the run lies in {runs_dir}, which cannot be written."
    return None


def register_run(runs_dir: Path, line: RegistryLine) -> None:
    """Add or replace the run's line in `runs_dir/registry.csv`, whole, waiting for other runs that do the same."""
    with _patient_lock(runs_dir / ".registry.lock"):
        sweep_partials(runs_dir, REGISTRY)  # the lock is the registry's: other files there are not ours
        lines = [known for known in read_registry(runs_dir) if known["run_id"] != line.run_id]
        new = {key: str(value) for key, value in asdict(line).items()}
        ordered = sorted([*lines, new], key=lambda known: known["started"])
        names = [f.name for f in fields(RegistryLine)]
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, names, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(ordered)
        publish_bytes(buffer.getvalue().encode(), runs_dir / REGISTRY)


def read_registry(runs_dir: Path) -> list[dict[str, str]]:
    """The registry's lines, oldest first."""
    path = runs_dir / REGISTRY
    if not path.exists():
        return []
    return list(csv.DictReader(io.StringIO(path.read_text())))


@contextmanager
def _patient_lock(path: Path) -> Iterator[None]:
    deadline = time.monotonic() + _PATIENCE_S
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(lock(path, "the registry of runs"))
                break
            except StorageError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        yield
