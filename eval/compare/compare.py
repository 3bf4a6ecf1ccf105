"""Compare evaluated runs: `shardclip compare runs/a runs/b`; one page, its values as JSON, and a table for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from core.errors import ShardclipError
from core.shard_set import ShardSet
from core.storage import publish_bytes
from eval.captions_file import captions_identity, read_captions
from eval.compare.curves import shared_metrics
from eval.compare.early import ComparedRun
from eval.compare.figures import by_class, differences, not_comparable
from eval.compare.page import spoken_gain, write_page
from eval.compare.queries import disagreements, features_of
from eval.compare.recipes import differing_environment, differing_keys
from eval.report.exhibits import thumbnail
from eval.report.measured import as_json
from eval.report.template import spoken_metric
from trainer.telemetry.names import IMAGE_TO_TEXT

COMPARISON, PAGE = "compare.json", "compare.html"
FORMAT_VERSION = 1
_THUMBNAIL = 128  # pixels: two rows of five beside each other


def compare(runs: Sequence[ComparedRun], out: Path, console: Console, curves_only: bool = False) -> dict[str, Any]:
    """Write `compare.json` and `compare.html` into `out`, and say the figures.

    Args:
        runs: as `expect_comparable` gives them; the first is what the others are held against.

    Returns:
        What `compare.json` holds.

    Raises:
        DamagedError: files of an evaluation do not belong together.
    """
    found: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "reference": runs[0].name,
        "runs": [_facts(run) for run in runs],
        "recipes": differing_keys([run.config for run in runs]),
        "environment": differing_environment([run.environment for run in runs]),
        "metrics": shared_metrics(runs),
        "notes": [_no_recipe(run) for run in runs if not run.config],
    }
    shots = _Shots("") if curves_only else _opened(runs[0])
    if not curves_only:
        found |= _measured(runs, shots)
    publish_bytes(as_json(found), out / COMPARISON)
    write_page(found, runs, shots.picture, out / PAGE)
    _say(found, out / PAGE, console)
    return found


@dataclass(frozen=True)
class _Shots:
    """Pictures and captions of the evaluated set, where it is still there; `missing` says why it is not."""

    missing: str
    shard_set: ShardSet | None = None
    captions: Mapping[int, Sequence[str]] | None = None

    def caption(self, place: Mapping[str, int]) -> str:
        assert self.shard_set is not None
        own = self.shard_set.captions(place["sample"]) if self.captions is None else self.captions[place["sample"]]
        return own[place["place"]]

    def picture(self, sample: int) -> bytes:
        """A sample's thumbnail as JPEG."""
        assert self.shard_set is not None
        return thumbnail(self.shard_set, sample, _THUMBNAIL)


def _measured(runs: Sequence[ComparedRun], shots: _Shots) -> dict[str, Any]:
    """Figures, and where captions are compared, what the runs disagree on."""
    has_text = IMAGE_TO_TEXT in runs[0].results
    features = features_of(runs) if has_text else []
    groups = features[0].features.text_groups if features else None
    more: dict[str, Any] = {
        "protocol": runs[0].results.get("protocol", ""),
        "figures": differences(runs, groups),
        "classes": by_class(runs),
        "not_comparable": not_comparable(runs),
        "queries": disagreements(runs, features) if features else [],
        "pictures": shots.missing,
    }
    if not shots.missing:
        for way in more["queries"]:
            for query in way["queries"]:
                query["text"] = shots.caption(query["caption"])
    return more


def _opened(run: ComparedRun) -> _Shots:
    """The evaluated set, if it is still where it was and what it was."""
    urls = [one["url"] for one in run.results["shards"]]
    try:
        shard_set = ShardSet.open(urls, text="")
    except (ShardclipError, OSError) as error:
        return _Shots(f"The evaluated shards are not where they were ({error}), so no pictures are shown.")
    if [m.fingerprint for m in shard_set.manifests] != [one["fingerprint"] for one in run.results["shards"]]:
        return _Shots(f"{' + '.join(urls)} is not what was evaluated any more, so no pictures are shown.")
    if not run.results["captions_from"]:
        return _Shots("", shard_set)
    path = Path(run.results["config"]["captions"])
    if not path.is_file() or captions_identity(path) != run.results["captions_from"]:
        return _Shots(f"The captions file {path} is not there as it was, so no pictures are shown.")
    return _Shots("", shard_set, read_captions(path, shard_set))


def _facts(run: ComparedRun) -> dict[str, Any]:
    results = run.results
    return {
        "name": run.name,
        "folder": str(run.folder),
        "checkpoint": results.get("checkpoint", ""),
        "encoder": results.get("encoder", ""),
        "embed_dim": results.get("embed_dim"),
        "text_encoder": results.get("text_encoder") or "",
        "samples_seen": run.rows[-1].samples_seen if run.rows else None,
        "steps": run.rows[-1].step if run.rows else None,
        "evaluated": results.get("evaluated", ""),
        "evaluated_on": results.get("hardware", ""),
        "shards": [{"url": one["url"], "fingerprint": one["fingerprint"]} for one in results.get("shards", ())],
        "trained_on": run.trained_on,
    }


def _no_recipe(run: ComparedRun) -> str:
    if run.results.get("config", {}).get("model"):
        return f"{run.name}: {run.results['run']} is a tower by itself, without a recipe and curves."
    return f"{run.name}: the run's folder {run.run_dir} is not here, so its recipe and curves are not known."


def _say(found: Mapping[str, Any], page: Path, console: Console) -> None:
    """The table on the console."""
    runs = [run["name"] for run in found["runs"]]
    if rows := found.get("figures"):
        if found["protocol"]:
            console.print(f"protocol: {found['protocol']}", markup=False)
        for number, name in enumerate(runs[1:], 1):  # a table each: four columns stay readable
            heads = ("figure", "difference", name, runs[0])
            table = Table(*(Column(Text(head), overflow="fold") for head in heads))  # Text: brackets are no markup
            for row in rows:
                values = (row["values"][number], row["values"][0])
                said = ["" if value is None else spoken_metric(row["figure"], value) for value in values]
                table.add_row(*map(Text, (row["figure"], spoken_gain(row["figure"], row["gains"][number - 1]), *said)))
            console.print(table)
    for said in (*found.get("not_comparable", ()), *found["notes"]):
        console.print(said, markup=False)
    keys = ", ".join(row["key"] for row in found["recipes"]) or "nothing"
    console.print(f"recipes differ in: {keys}", markup=False)
    console.print(f"comparison: {page}", markup=False)
