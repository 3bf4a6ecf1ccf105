"""Prompt templates: what each gives alone, and what their mean gains over the first (Radford 2021, section 3.1.4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from core.errors import ConfigError
from eval.evaluations.evaluation import Evaluation, Measured, Need, Section, Subject, Table
from eval.evaluations.zero_shot import check_templates, rank_classes, read_lines, spoken_class, with_a_class
from eval.metrics import Interval, bootstrap, share_interval

if TYPE_CHECKING:
    from eval.report.drawing.style import Figure, Theme

# Ten of the eighty prompts of CLIP for ImageNet (openai/CLIP, Prompt_Engineering_for_ImageNet.ipynb): the plain one,
# the seven that its authors recommend in place of all, and two more of photographs. configs/prompts/ten_templates.txt.
TEN_TEMPLATES = (
    "a photo of a {}.",
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
    "a close-up photo of a {}.",
    "a good photo of a {}.",
)
FIRST, SINGLE, ENSEMBLE, GAIN = (f"prompt_templates/{name}" for name in ("first", "mean_single", "ensemble", "gain"))


@dataclass(frozen=True)
class PromptTemplates(Evaluation):
    """Zero-shot accuracy by each template and by all together.

    Attributes:
        templates: the first is what the others and the ensemble are compared with.
        templates_file: or a file with one in each line.
    """

    templates: tuple[str, ...] = TEN_TEMPLATES
    templates_file: Path | None = None

    needs: ClassVar[tuple[Need, ...]] = ("labels", "words")
    title: ClassVar[str] = "Prompt templates"

    def __post_init__(self) -> None:
        super().__post_init__()
        templates = self._all()
        check_templates(templates)
        if len(set(templates)) < max(2, len(templates)):
            raise ConfigError("prompt_templates: give at least two templates, each once: they are compared.")

    def figures(self) -> tuple[str, ...]:
        """Accuracy by the first template, by one on average and by all; and what all gain over the first."""
        return (FIRST, SINGLE, ENSEMBLE, GAIN)

    def measure(self, subject: Subject) -> Measured:
        """Of the pictures that have a class, among all classes.

        Raises:
            DataError: none has.
        """
        assert subject.labels is not None and subject.words is not None
        templates, has_class = self._all(), with_a_class(subject.labels, "prompt_templates")
        chosen, labels = np.flatnonzero(has_class), subject.labels[has_class]
        spoken = [spoken_class(name) for name in subject.classes]
        embedded = subject.words([template.replace("{}", name) for template in templates for name in spoken])
        by_template = embedded.astype(np.float32).reshape(len(templates), len(spoken), -1)
        by_template /= np.linalg.norm(by_template, axis=2, keepdims=True)
        together = by_template.mean(axis=0)
        together /= np.linalg.norm(together, axis=1, keepdims=True)
        single = np.stack([rank_classes(subject.images, chosen, own, labels) == 1 for own in by_template])  # (T, N)
        ensemble = rank_classes(subject.images, chosen, together, labels) == 1
        intervals = {
            FIRST: share_interval(single[0]),
            SINGLE: share_interval(single.mean(axis=0)),
            ENSEMBLE: share_interval(ensemble),
            GAIN: _gain(ensemble, single[0]),
        }
        rows = [_row(template, is_right, single[0]) for template, is_right in zip(templates, single, strict=True)]
        shown = {
            "num_images": len(labels),
            "num_classes": len(spoken),
            "templates": rows,
            "ensemble": _row("", ensemble, single[0]),
        }
        return Measured({name: interval.estimate for name, interval in intervals.items()}, intervals, shown)

    def _all(self) -> tuple[str, ...]:
        return read_lines(self.templates_file) if self.templates_file else self.templates

    @staticmethod
    def section(part: Mapping[str, Any]) -> Section:
        """The gain, and every template."""
        figures, intervals, rows = part["figures"], part["intervals"], part["templates"]
        gain, first = Interval(**intervals[GAIN]), rows[0]["template"]
        return Section(
            f"{part['num_images']:,} pictures of {part['num_classes']} classes, classified by each template alone and "
            "by the mean of all of a class's prompts. Differences are to the first template, over the same pictures, "
            f"with 95 % paired intervals: all together are {_judged(gain, first)}",
            values=(
                (f"{100 * figures[FIRST]:.1f} %", f"by “{first}”"),
                (f"{100 * figures[SINGLE]:.1f} %", "by one template, on average"),
                (f"{100 * figures[ENSEMBLE]:.1f} %", f"by {len(rows)} templates together"),
                (f"{100 * gain.estimate:+.1f}", f"points gained ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"),
            ),
            tables=[
                Table(
                    ("template", "accuracy %", "95 % interval", "difference", "95 % interval"),
                    [_cells(_all_together(rows), part["ensemble"]), *(_cells(row["template"], row) for row in rows)],
                )
            ],
        )

    @staticmethod
    def charts(part: Mapping[str, Any], folder: Path, theme: Theme) -> dict[str, Figure]:
        """Every template and all together, beside the first."""
        from eval.report.drawing.intervals import IntervalRow, interval_rows  # with matplotlib

        rows = part["templates"]
        drawn = [IntervalRow(_all_together(rows), Interval(**part["ensemble"]["accuracy"]), is_strong=True)]
        drawn += [IntervalRow(row["template"], Interval(**row["accuracy"])) for row in rows]
        note = "zero-shot accuracy with 95 % intervals; dashed: the first template; the table has paired differences"
        line = rows[0]["accuracy"]["estimate"]
        return {"accuracy": interval_rows("Prompt templates", note, drawn, theme, line_at=line)}


def _gain(is_right: np.ndarray, first: np.ndarray) -> Interval:
    return bootstrap(is_right.astype(np.float64) - first)


def _row(template: str, is_right: np.ndarray, first: np.ndarray) -> dict[str, Any]:
    own, gain = share_interval(is_right), _gain(is_right, first)
    return {"template": template, "accuracy": asdict(own), "gain": asdict(gain)}


def _all_together(rows: list[Any]) -> str:
    return f"all {len(rows)} together"


def _cells(name: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    own, gain = row["accuracy"], row["gain"]
    return (
        name,
        f"{100 * own['estimate']:.1f}",
        f"{100 * own['low']:.1f} to {100 * own['high']:.1f}",
        f"{100 * gain['estimate']:+.1f}",
        f"{100 * gain['low']:+.1f} to {100 * gain['high']:+.1f}",
    )


def _judged(gain: Interval, first: str) -> str:
    if gain.low > 0:
        return f"better than “{first}” by more than chance."
    return (
        f"worse than “{first}” by more than chance."
        if gain.high < 0
        else f"not told apart from “{first}” by these pictures."
    )
