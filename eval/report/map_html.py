"""The map to move over: one piece of a page with its points, its style and its script; it loads nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

from eval.report.marks import ON_DARK, ON_LIGHT, SHAPES, Group, grouped

_TEMPLATE = Path(__file__).parent / "feature_map.html"
_IN_SCRIPT = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def map_html(part: Mapping[str, Any], spoken: Mapping[str, str], notes: Mapping[str, str]) -> str:
    """Of what `results.json` holds of the maps.

    Args:
        spoken, notes: name of each method, and what is said below its map.
    """
    data = {
        "maps": [{"name": spoken[method], "note": notes[method], "points": xy} for method, xy in part["maps"].items()],
        "groups": [
            {"name": group.name, "rows": group.rows, "colour": group.colour, "shape": _shape(group)}
            for group in grouped(part["labels"], part["classes"])
        ],
        **{name: part[name] for name in ("labels", "classes", "captions", "neighbours", "cosines", "sheet")},
    }  # fmt: skip
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        light=_variables(ON_LIGHT), dark=_variables(ON_DARK), data=script_json(data)
    )


def script_json(value: Any) -> str:
    """JSON that can stand in a `<script>` of a page: whatever its texts say, it neither ends nor opens an element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return "".join(_IN_SCRIPT.get(letter, letter) for letter in text)


def _variables(colours: tuple[str, ...]) -> str:
    return " ".join(f"--mark-{number}: {colour};" for number, colour in enumerate(colours))


def _shape(group: Group) -> str:
    return "dot" if group.shape is None else SHAPES[group.shape]
