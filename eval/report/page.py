"""One self-contained `report.html` from what lies in a folder: `shardclip report runs/flickr8k_sample`."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.errors import DamagedError
from core.storage import publish_bytes
from eval.early import RESULTS, expect_measured
from eval.report.charts import result_charts, training_charts
from eval.report.drawing.style import DARK, LIGHT, Figure, Theme, png_bytes
from eval.report.measured import sections, unmeasured
from trainer.run.environment import hardware
from trainer.run.folder import CONFIG, ENVIRONMENT, RUN, read_events
from trainer.telemetry import names
from trainer.telemetry.names import DIRECTIONS, RECALL_KS
from trainer.trackers.metrics_csv import METRICS, Row, read_metrics

REPORT, PICTURES = "report.html", "pictures"
_TEMPLATE = Path(__file__).parent / "page.html"
_INSTABILITIES = ("loss spike", "non-finite step")
_MAX_EVENTS = 40  # listed; all of them lie in events.jsonl


def write_report(folder: Path) -> Path:
    """Publish `folder/report.html` from its `results.json` and the run folder that it names (or that `folder` is).

    Parts that are absent are named in the report, with the command that makes them.

    Raises:
        StorageError: there is neither an evaluation nor a run in the folder.
    """
    results = _json(folder / RESULTS)
    run_dir = folder / results.get("run_dir", ".")
    if not results:
        expect_measured(run_dir)
    html = render(results, folder / PICTURES, **_run_facts(run_dir))
    publish_bytes(html.encode(), folder / REPORT)
    return folder / REPORT


def render(
    results: Mapping[str, Any],
    pictures: Path,
    *,
    rows: Sequence[Row] = (),
    events: Sequence[Mapping[str, Any]] = (),
    environment: Mapping[str, Any] | None = None,
    config: str = "",
    run: Mapping[str, Any] | None = None,
) -> str:
    """The page; every argument may be empty. `pictures` holds the thumbnails that `results` names."""
    from jinja2 import Environment, StrictUndefined  # training imports this file, and needs no template

    charts = _both_themes(results, pictures, rows)
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template.filters.update(percent=_percent, count=_count, figure=_figure)
    return template.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        results=results,
        title=results.get("run") or (run or {}).get("name") or "shardclip",
        directions=_headline(results),
        accuracies=_accuracies(results),
        further=_further_figures(results),
        sections=sections(results, charts),
        unmeasured=unmeasured(results),
        recall_ks=RECALL_KS,
        charts=charts,
        inline=lambda place: _inline((pictures / place).read_bytes(), "jpeg"),
        ranked=lambda values: sorted(range(len(values)), key=lambda i: -values[i]),
        per_class=_per_class,
        run=run or {},
        facts=_facts(results, rows, events, environment or {}),
        checks=_last_values(rows, names.CHECK),
        final=_last_values(rows, names.TRAIN) | _last_values(rows, names.PERF),
        coverage=[event for event in events if "declared" in event],
        instabilities=[event for event in events if event["event"] in _INSTABILITIES],
        events=[_spoken_event(event) for event in events if "declared" not in event][-_MAX_EVENTS:],
        environment=_spoken_environment(environment or {}),
        config=config,
        has_history=bool(rows),
        has_events=bool(events),
    )


def _run_facts(run_dir: Path) -> dict[str, Any]:
    config = run_dir / CONFIG
    return {
        "rows": read_metrics(run_dir / METRICS),
        "events": read_events(run_dir),
        "environment": _json(run_dir / ENVIRONMENT),
        "config": config.read_text() if config.exists() else "",
        "run": _json(run_dir / RUN),
    }


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except ValueError:
        raise DamagedError(f"{path}: no whole JSON. Run `shardclip eval` again, or delete the file.") from None
    return found


def _both_themes(results: Mapping[str, Any], pictures: Path, rows: Sequence[Row]) -> dict[str, dict[str, str]]:
    """`{name: {"light": data URL, "dark": data URL}}`."""

    def drawn(theme: Theme) -> dict[str, Figure]:
        return result_charts(results, pictures, theme) | training_charts(rows, theme)

    light, dark = drawn(LIGHT), drawn(DARK)
    return {
        name: {"light": _inline(png_bytes(light[name]), "png"), "dark": _inline(png_bytes(dark[name]), "png")}
        for name in light
    }


def _headline(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Both directions with their figures and intervals; empty where retrieval was not measured."""
    if "image_to_text" not in results:
        return []
    headings = {"image_to_text": ("Image → text", "find a caption for an image"),
                "text_to_image": ("Text → image", "find the image of a caption")}  # fmt: skip
    return [
        {
            "name": headings[direction][0],
            "means": headings[direction][1],
            "key": direction,
            "figures": results[direction],
            "intervals": results["intervals"].get(direction, {}),
        }
        for direction in DIRECTIONS
    ]


def _accuracies(results: Mapping[str, Any]) -> list[tuple[str, float]]:
    """k-NN accuracies with their names and intervals; empty where no classes are known."""
    figures = results.get("figures", {})
    ends = {
        name: one for part in results.get("evaluations", {}).get("knn", ()) for name, one in part["intervals"].items()
    }
    return [
        (
            f"{spoken} ({100 * ends[name]['low']:.1f} to {100 * ends[name]['high']:.1f})" if name in ends else spoken,
            figures[name],
        )
        for name, spoken in ((names.KNN, "20 neighbours"), (names.KNN1, "the nearest alone"))
        if name in figures
    ]


def _further_figures(results: Mapping[str, Any]) -> list[tuple[str, float]]:
    """What evaluations measured that has no place of its own in the page."""
    placed = (
        *(name for parts in results.get("evaluations", {}).values() for part in parts for name in part["figures"]),
        names.KNN,
        names.KNN1,
        names.ZERO_SHOT,
        names.ZERO_SHOT_BY_CLASS,
        *(f"{direction}/" for direction in DIRECTIONS),
    )
    return [(name, value) for name, value in results.get("figures", {}).items() if not name.startswith(placed)]


def _facts(
    results: Mapping[str, Any],
    rows: Sequence[Row],
    events: Sequence[Mapping[str, Any]],
    environment: Mapping[str, Any],
) -> list[tuple[str, str]]:
    """What stands under the title: name and value."""
    facts = []
    if rows:
        facts.append(("Trained", f"{_count(rows[-1].samples_seen)} samples in {_count(rows[-1].step)} steps"))
        measured = [event["seconds"] for event in events if "seconds" in event]  # validation and saving included
        facts.append(("Training time", _duration(measured[-1] if measured else rows[-1].time - rows[0].time)))
    if environment:
        facts.append(("Hardware", hardware(dict(environment))))
    elif results:
        facts.append(("Hardware", results["hardware"]))
    if results:
        if results["text_encoder"]:
            facts.append(("Text encoder", results["text_encoder"].split(" (")[0]))
        facts.append(("Embedding", f"{results['embed_dim']} dimensions"))
        facts.append(("Evaluation", f"{results['seconds']:.0f} s on {results['evaluated'][:10]}"))
    return facts


def _last_values(rows: Sequence[Row], section: str) -> dict[str, float | int | str]:
    """The newest value of every metric of a section, under its name without the section."""
    last: dict[str, float | int | str] = {}
    for row in rows:
        own = {name: value for name, value in row.metrics.items() if names.section(name) == section}
        last |= {names.within_section(name): value for name, value in own.items()}
    return last


def _per_class(part: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Classes with their accuracy, the best first; classes without images are left out."""
    pairs = [(name, share) for name, share in zip(part["classes"], part["per_class"], strict=True) if share is not None]
    return sorted(pairs, key=lambda pair: -pair[1])


def _spoken_event(event: Mapping[str, Any]) -> dict[str, Any]:
    known = ("time", "event", "step")
    details = {key: value for key, value in event.items() if key not in known and value not in ("", [], {}, None)}
    named = {key: "" if key == "detail" else f"{key.replace('_', ' ')}: " for key in details}
    spoken = "; ".join(f"{named[key]}{_as_text(value)}" for key, value in details.items())
    return {"time": event["time"], "event": event["event"], "step": event.get("step"), "details": spoken}


def _spoken_environment(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values that say something."""
    return [(k.replace("_", " "), _as_text(v)) for k, v in environment.items() if v not in ("", [], {}, None)]


def _as_text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    if isinstance(value, list):
        texts = [_as_text(item) for item in value]
        return (" " if all(" " not in text for text in texts) else ", ").join(texts)
    return _figure(value) if isinstance(value, float) else str(value)


def _inline(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _count(number: float) -> str:
    return f"{number:,.0f}"


def _figure(value: float | int | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
