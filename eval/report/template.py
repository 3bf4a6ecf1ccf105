"""A page from its template; pages of other folders share this one's style and parts. Safe with any text."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from trainer.telemetry import names

_HERE = Path(__file__).parent


def fill_template(template: Path, **values: Any) -> str:
    """The page; it may include `style.css` and import from `parts.html`, and text in it is never markup.

    Args:
        values: a name that the template uses and that is not here is an error.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # training imports this file, and needs no page

    environment = Environment(
        loader=FileSystemLoader([template.parent, _HERE], encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=_percent, count=spoken_count, figure=spoken_figure)
    return environment.get_template(template.name).render(**values)


def inline(data: bytes, kind: str) -> str:
    """A picture as an address that holds all of it."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def spoken_count(number: float) -> str:
    """`12,345`."""
    return f"{number:,.0f}"


def spoken_figure(value: float | int | str) -> str:
    """Four digits of a number; text as it is."""
    return value if isinstance(value, str) else f"{value:.4g}"


def spoken_metric(metric: str, value: float) -> str:
    """A share in percent, any other metric with four digits."""
    return f"{100 * value:.1f} %" if names.is_share(metric) else spoken_figure(value)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
