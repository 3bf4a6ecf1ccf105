"""What an evaluation found, for Python: figures with their intervals as plain values, and as a pandas table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import ConfigError, DamagedError, StorageError
from eval.early import RESULTS
from eval.metrics import Interval
from trainer.telemetry.names import DIRECTIONS, of_direction, recall

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, eq=False)
class Results(Mapping[str, Any]):
    """One evaluation. As a mapping it is what `results.json` holds: `results["image_to_text"]["recall@10"]`.

    Attributes:
        run: name of the run.
        checkpoint: which of its checkpoints.
        shards: what it was measured on.
        protocol: of retrieval, in words; "" where no captions were compared.
        figures: by name; recalls and accuracies are shares from 0 to 1.
        intervals: 95 % intervals of some of them, by the same names.
        raw: everything in `results.json`.
    """

    run: str
    checkpoint: str
    shards: tuple[str, ...]
    protocol: str
    figures: Mapping[str, float]
    intervals: Mapping[str, Interval]
    raw: Mapping[str, Any]

    def frame(self) -> pandas.DataFrame:
        """A row per figure: `figure`, `value`, `low`, `high` (NaN where it has no interval), and the run's name.

        Raises:
            ConfigError: pandas is not installed.
        """
        try:
            import pandas
        except ModuleNotFoundError:
            raise ConfigError("a table of results needs pandas: `pip install 'shardclip[viz]'`.") from None

        rows = [
            (self.run, name, value, *((i.low, i.high) if (i := self.intervals.get(name)) else (float("nan"),) * 2))
            for name, value in self.figures.items()
        ]
        return pandas.DataFrame(rows, columns=["run", "figure", "value", "low", "high"])

    def __getitem__(self, key: str) -> Any:
        return self.raw[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.raw)

    def __len__(self) -> int:
        return len(self.raw)


def results(folder: str | Path) -> Results:
    """The evaluation that lies in a folder: a run that `shardclip eval` has measured, or the `out` of it.

    Raises:
        StorageError: there is none.
        DamagedError: its file is not whole.
    """
    path = Path(folder) / RESULTS
    if not path.is_file():
        raise StorageError(f"{path}: no such file. Run `shardclip eval` first.")
    try:
        return results_of(json.loads(path.read_text(encoding="utf-8")))
    except ValueError:
        raise DamagedError(f"{path}: no whole JSON. Run `shardclip eval` again.") from None


def results_of(raw: Mapping[str, Any]) -> Results:
    """From what `results.json` holds."""
    intervals = {
        of_direction(direction, recall(int(k))): Interval(**found)
        for direction in DIRECTIONS
        for k, found in raw.get("intervals", {}).get(direction, {}).items()
    }
    intervals |= {name: Interval(**found) for name, found in raw.get("figure_intervals", {}).items()}
    shards = tuple(part["url"] for part in raw["shards"])
    given = (raw["run"], raw["checkpoint"], shards, raw.get("protocol", ""))
    return Results(*given, raw.get("figures", {}), intervals, raw)
