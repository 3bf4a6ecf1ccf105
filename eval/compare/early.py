"""The runs of a comparison, and what of it can be known to fail without torch: said within a second."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from core.errors import ConfigError, DamagedError, DataError, StorageError
from core.places import COMPARISON, expect_folder_of_ours
from eval.early import FEATURES, RANKS, RESULTS, read_json
from trainer.checkpoint.folder import STATE
from trainer.run.folder import CHECKPOINTS, CONFIG, ENVIRONMENT, RUN
from trainer.telemetry.names import IMAGE_TO_TEXT
from trainer.trackers.metrics_csv import METRICS, Row, read_metrics

_NEEDED = ("figures", "shards", "captions_from", "checkpoint", "run_dir")  # of `results.json`


@dataclass(frozen=True)
class ComparedRun:
    """A run as it lies in its folder.

    Attributes:
        name: for people, no two alike.
        folder: that was named: of the run, or the `out` of its evaluation.
        results: of `shardclip eval`; empty where it was not evaluated.
        config: the training recipe; empty where the run's folder is not there.
    """

    name: str
    folder: Path
    run_dir: Path
    results: Mapping[str, Any]
    rows: Sequence[Row]
    config: Mapping[str, Any]
    environment: Mapping[str, Any]

    @property
    def trained_on(self) -> str:
        """The fingerprint of the training set, as the checkpoint notes it; "": nothing notes it any more."""
        state = read_json(self.run_dir / CHECKPOINTS / self.results.get("checkpoint", "") / STATE)
        return str(state.get("order", {}).get("shards", ""))


def expect_comparable(folders: Sequence[Path], out: Path, curves_only: bool = False) -> list[ComparedRun]:
    """The runs, the first of which is the reference.

    Args:
        curves_only: their curves and recipes alone, whatever they were measured on, if at all.

    Raises:
        ConfigError: fewer than two, or `out` holds other things.
        StorageError: one is not there, or was not evaluated; says the command.
        DataError: one was measured on other shards or captions, or by another protocol; says which.
        DamagedError: a file is not whole, or of an older version.
    """
    if len(folders) < 2:
        named = f"{folders[0]} alone is named" if folders else "no run is named"
        raise ConfigError(f"compare: {named}. Name two run folders or more; the first is what others are held against.")
    expect_folder_of_ours(out, "--out", COMPARISON)
    names = _names(folders)
    runs = [_read(folder, name, curves_only) for folder, name in zip(folders, names, strict=True)]
    if not curves_only:
        for run in runs[1:]:
            if why := _other(runs[0], run):
                raise DataError(
                    f"compare: {run.folder} {why}. Evaluate both alike, or compare curves and recipes alone: "
                    "--curves-only."
                )
    return runs


def _read(folder: Path, known_as: str, curves_only: bool) -> ComparedRun:
    if not folder.is_dir():
        raise StorageError(f"compare: there is no folder {folder}. Name one that `shardclip eval` has measured.")
    results = read_json(folder / RESULTS)
    run_dir = folder / str(results.get("run_dir", "."))
    if not results and not curves_only:
        where = "" if (folder / RUN).exists() else ", nor is it a run"
        raise StorageError(
            f"compare: {folder} was not evaluated{where}. Run `shardclip eval RECIPE checkpoint={folder}`, or name the "
            "folder that it wrote into (out)."
        )
    if results and (lacking := [key for key in _NEEDED if key not in results]):
        raise DamagedError(
            f"compare: {folder / RESULTS} has no '{lacking[0]}', so another version wrote it. Run `shardclip eval` "
            "again."
        )
    if IMAGE_TO_TEXT in results and not curves_only:
        for name in (RANKS, FEATURES):
            if not (folder / name).exists():
                raise StorageError(f"compare: {folder / name} is missing. Run `shardclip eval` again.")
    rows = read_metrics(run_dir / METRICS) if (run_dir / METRICS).exists() else []
    if curves_only and not rows:
        raise StorageError(f"compare: {run_dir / METRICS} is missing: there are no curves. Name a run's own folder.")
    config = _yaml(run_dir / CONFIG)
    return ComparedRun(known_as, folder, run_dir, results, rows, config, read_json(run_dir / ENVIRONMENT))


def _yaml(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        found = None
    if not isinstance(found, dict):
        raise DamagedError(f"compare: {path} is no recipe. Put back what `shardclip train` wrote there, or delete it.")
    return found


def _other(reference: ComparedRun, run: ComparedRun) -> str | None:
    """In what the evaluations differ so that their figures cannot be compared."""
    (was, urls), (now, own_urls) = (_shards(r) for r in (reference, run))
    if was != now:
        return f"was measured on other shards ({' + '.join(own_urls)}) than {reference.folder} ({' + '.join(urls)})"
    for key, what, usual in (
        ("captions_from", "with captions of {}", "the shards"),
        ("protocol", "by the protocol '{}'", "none: without captions"),
    ):
        theirs, ours = (r.results.get(key) or usual for r in (reference, run))
        if theirs != ours:
            return f"was measured {what.format(ours)}, {reference.folder} {what.format(theirs)}"
    return None


def _shards(run: ComparedRun) -> tuple[list[str], list[str]]:
    shards = run.results["shards"]
    return [one["fingerprint"] for one in shards], [one["url"] for one in shards]


def _names(folders: Sequence[Path]) -> list[str]:
    """Their last parts where these tell them apart, else the paths; numbered where one is named twice."""
    short = [_last_part(folder) for folder in folders]
    names = short if len(set(short)) == len(short) else [str(folder) for folder in folders]
    seen: Counter[str] = Counter()
    numbered = []
    for name in names:
        seen[name] += 1
        numbered.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return numbered


def _last_part(folder: Path) -> str:
    """`runs/a/eval` is known as `a`'s."""
    parts = folder.resolve().parts
    return "/".join(parts[-2:]) if parts[-1] in ("eval", "run", "out") and len(parts) > 2 else parts[-1]
