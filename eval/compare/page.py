"""`compare.html`: one page that holds all of a comparison."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from core.storage import publish_bytes
from eval.compare.curves import comparison_charts, is_headline
from eval.compare.early import ComparedRun
from eval.compare.queries import FOUND
from eval.report.charts import both_themes
from eval.report.template import fill_template, inline, spoken_metric
from trainer.telemetry import names

_DPI = 110  # there are dozens of charts
_TEMPLATE = Path(__file__).parent / "comparison.html"


def write_page(
    found: Mapping[str, Any], runs: Sequence[ComparedRun], picture: Callable[[int], bytes], path: Path
) -> None:
    """Publish the page.

    Args:
        found: what `compare.json` holds.
        picture: the JPEG thumbnail of a sample.
    """
    html = fill_template(
        _TEMPLATE,
        found=found,
        names=[run["name"] for run in found["runs"]],
        charts=both_themes(lambda theme: comparison_charts(runs, theme), _DPI),
        is_headline=is_headline,
        num_found=FOUND,
        inline=cache(lambda sample: inline(picture(sample), "jpeg")),
        spoken_metric=spoken_metric,
        spoken_gain=spoken_gain,
        verdict_of=verdict_of,
    )
    publish_bytes(html.encode(), path)


def spoken_gain(figure: str, gain: Mapping[str, float] | None) -> str:
    """`+3.1 [+1.0, +5.0]`: points of a share, other figures as they are; the interval where there is one."""
    if gain is None:
        return "not comparable"
    by, digits = (100, ".1f") if names.is_share(figure) else (1, ".3g")
    ends = [f"{by * gain[end]:+{digits}}" for end in ("estimate", "low", "high") if end in gain]
    return ends[0] if len(ends) == 1 else f"{ends[0]} [{ends[1]}, {ends[2]}]"


def verdict_of(figure: str, gain: Mapping[str, float] | None) -> str:
    """`good` or `bad` where the interval excludes 0."""
    if gain is None or "low" not in gain or gain["low"] <= 0 <= gain["high"]:
        return ""
    return "good" if (gain["low"] > 0) != names.lower_is_better(figure) else "bad"
