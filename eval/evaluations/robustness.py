"""Robustness: how much of retrieval, or of k-NN, is left when pictures get worse (Hendrycks and Dietterich 2019)."""

from __future__ import annotations

import base64
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from core.errors import ConfigError, did_you_mean
from eval.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from eval.evaluations.evaluation import Evaluation, Known, Measured, Need, Section, Subject, Table
from eval.evaluations.knn import expect_others, pictures_are_right
from eval.evaluations.zero_shot import rank_classes
from eval.metrics import Interval, group_sums, never_certain, percentile_interval, resampled_sums
from trainer.telemetry import names
from trainer.telemetry.names import DIRECTIONS, RECALL_KS

if TYPE_CHECKING:
    from torch import Tensor

    from eval.report.drawing.style import Figure, Theme

# One of each kind: noise, blur, light, compression, and what hides a part.
SENSIBLE = ("gaussian_noise", "defocus_blur", "brightness", "contrast", "jpeg_compression", "occlusion")
_SHOWN_SIZE, _SHOWN_QUALITY = 88, 78  # pixels and JPEG quality of the example's pictures: some 2 KB each


@dataclass(frozen=True, eq=False)
class Scores:
    """What a set of features reaches.

    Attributes:
        metrics: shares by name; the first is the one that the evaluation's figures are made of.
        queries: which that one is made of: its mean over the parts of the mean of `(Q,)` shares, beside `(Q,)` groups
            that rise and fall together.
    """

    metrics: dict[str, float]
    queries: Sequence[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class UnderCorruptions(Evaluation):
    """What some figure is worth under corruptions of the pictures, beside clean ones.

    Attributes:
        corruptions: names of `eval.corruptions`.
        severities: from 1 to 5.
        seed: of what is drawn: noise, and where squares lie.
    """

    corruptions: tuple[str, ...] = SENSIBLE
    severities: tuple[int, ...] = SEVERITIES
    seed: int = 0

    score: ClassVar[str]  # what is measured, in words
    mean: ClassVar[str]  # names of its figures
    retained: ClassVar[str]
    curves: ClassVar[Mapping[str, str]]  # what is drawn: metric -> words
    drawn: ClassVar[str]  # what these are, in the chart's note

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.corruptions:
            if name not in CORRUPTIONS:
                raise ConfigError(f"corruptions: unknown name '{name}'.{did_you_mean(name, CORRUPTIONS)}")
        for severity in self.severities:
            if severity not in SEVERITIES:
                raise ConfigError(f"severities: {severity} is none. Give some of {', '.join(map(str, SEVERITIES))}.")
        for option, values in (("corruptions", self.corruptions), ("severities", self.severities)):
            if not values or len(set(values)) < len(values):
                raise ConfigError(f"{option}: {list(values)} is empty or names one twice. Name each once.")

    def figures(self) -> tuple[str, ...]:
        """The mean over all corruptions, what share of the clean figure that is, and the mean of each corruption."""
        return (self.mean, self.retained, *(names.of_corruption(self.mean, name) for name in self.corruptions))

    @staticmethod
    @abstractmethod
    def scores(subject: Subject, images: np.ndarray) -> Scores:
        """Of `(N, D)` features of the subject's pictures, in their order; collective."""

    def measure(self, subject: Subject) -> Measured:
        """One forward pass of all pictures for each corruption and severity."""
        from core.distributed import is_main, on_main  # with torch, which recipes do without

        assert subject.encode is not None
        say = subject.say if is_main() else lambda line: None
        num_passes, num_images = len(self.corruptions) * len(self.severities), len(subject.images)
        say(f"{self.mean}: {num_passes} forward passes of {num_images:,} pictures")
        clean, example, started = self.scores(subject, subject.images), _Example.of(subject), time.monotonic()
        under: list[list[Scores]] = []
        for name in self.corruptions:
            under.append([])
            for severity in self.severities:
                images = subject.encode(_Changing(name, severity, self.seed, example))
                assert images.shape == subject.images.shape, "changed pictures are the subject's own, in their order"
                under[-1].append(self.scores(subject, images))
                if name == self.corruptions[0] and len(under[-1]) == 1 and num_passes > 1:
                    seconds = time.monotonic() - started
                    say(f"{self.mean}: the first took {seconds:.1f} s, all take about {seconds * num_passes:.0f} s")
        tallies = _tallies(clean, under)
        figures = self._figures(np.array([[np.mean([values[:, i].mean() for values, _ in tallies])
                                           for i in range(1 + len(under))]]))  # fmt: skip
        resampled = on_main(lambda: self._figures(_resampled_means(tallies)))
        num_groups = min(len(np.unique(groups)) for _, groups in tallies)
        pictures = example.gathered()
        return Measured(
            {name: float(value[0]) for name, value in figures.items()},
            {name: self._interval(name, figures[name], values, num_groups) for name, values in resampled.items()},
            {
                "num_images": num_images,
                "corruptions": list(self.corruptions),
                "severities": list(self.severities),
                "metrics": {
                    metric: {"clean": value, "under": [[cell.metrics[metric] for cell in row] for row in under]}
                    for metric, value in clean.metrics.items()
                },
                "example": {
                    "sample": example.sample,
                    "clean": pictures["", 0],
                    "under": [[pictures[name, s] for s in self.severities] for name in self.corruptions],
                },
            },
        )

    def _figures(self, means: np.ndarray) -> dict[str, np.ndarray]:
        """By name `(R,)`, of means `(R, 1 + corruptions)` of clean pictures and under each corruption."""
        clean, under = means[:, 0], means[:, 1:]
        mean = under.mean(axis=1)
        # Who finds nothing among clean pictures retains nothing.
        retained = np.divide(mean, clean, out=np.zeros_like(mean), where=clean > 0)
        of_each = {names.of_corruption(self.mean, name): under[:, i] for i, name in enumerate(self.corruptions)}
        return {self.mean: mean, self.retained: retained, **of_each}

    def _interval(self, name: str, figure: np.ndarray, resampled: np.ndarray, num_groups: int) -> Interval:
        interval = percentile_interval(float(figure[0]), resampled, num_groups)
        return interval if name == self.retained else never_certain(interval, num_groups)  # a ratio is no share

    @classmethod
    def section(cls, part: Mapping[str, Any]) -> Section:
        """Both headline figures, the matrix of corruptions and severities, other metrics, and an example."""
        (_, score), *others = part["metrics"].items()
        figures = part["figures"]
        lead = (
            f"The {cls.score} of {part['num_images']:,} pictures that are made worse, each in "
            f"{_number(part['corruptions'], 'way', 'ways')} at {_number(part['severities'], 'severity', 'severities')} "
            "(ImageNet-C, Hendrycks and Dietterich 2019; occlusion is our own: a grey square over 5 to 40 % of the "
            "area). Retained is the mean under corruption as a share of the clean figure. In brackets: 95 % intervals "
            "over pictures, drawn with their clean selves."
        )
        values = (
            (f"{_percent(figures[cls.retained])} %", f"retained {_between(part, cls.retained)}"),
            (f"{_percent(figures[cls.mean])} %", f"{cls.score}, corrupted {_between(part, cls.mean)}"),
            (f"{_percent(score['clean'])} %", f"{cls.score}, clean"),
        )
        matrix = Table(
            ("corruption", *(f"severity {s}" for s in part["severities"]), "mean", "retained"),
            [
                (_spoken(name), *map(_percent, row), _percent(float(np.mean(row))), _share(row, score["clean"]))
                for name, row in zip(part["corruptions"], score["under"], strict=True)
            ],
            f"The {cls.score} in percent",
        )
        tables = [matrix]
        if others:
            rows = [("none", *(_percent(values["clean"]) for _, values in others))] + [
                (_spoken(name), *(_percent(float(np.mean(values["under"][i]))) for _, values in others))
                for i, name in enumerate(part["corruptions"])
            ]
            tables.append(Table(("corruption", *(_spoken(metric) for metric, _ in others)), rows,
                                "Other figures in percent, mean over severities"))  # fmt: skip
        return Section(lead, values, tables, html=_sheet(part))

    @classmethod
    def charts(cls, part: Mapping[str, Any], folder: Path, theme: Theme) -> dict[str, Figure]:
        """Curves over severity, a panel for each corruption."""
        from eval.report.drawing.severities import severity_panels

        drawn = {words: part["metrics"][metric] for metric, words in cls.curves.items() if metric in part["metrics"]}
        panels = {
            _spoken(name): {words: score["under"][i] for words, score in drawn.items()}
            for i, name in enumerate(part["corruptions"])
        }
        clean = {words: score["clean"] for words, score in drawn.items()}
        note = f"{cls.drawn} over severity; 0 and the dashed line: clean pictures"
        figure = severity_panels(cls.title, note, panels, clean, part["severities"], theme)
        return {f"{names.section(cls.mean)}_over_severity": figure}


@dataclass(frozen=True)
class Robustness(UnderCorruptions):
    """Retrieval under corruptions: captions are as they were, pictures change. Counts the mean of the six recalls."""

    needs: ClassVar[tuple[Need, ...]] = ("pictures", "text")
    title: ClassVar[str] = "Robustness"
    score: ClassVar[str] = "mean recall"
    mean: ClassVar[str] = names.CORRUPTED_RECALL
    retained: ClassVar[str] = names.RETAINED_RECALL
    drawn: ClassVar[str] = "mean of R@1, R@5 and R@10"
    curves: ClassVar[Mapping[str, str]] = {
        names.of_direction(d, names.MEAN_RECALL): d.replace("_", " ") for d in DIRECTIONS
    }

    @staticmethod
    def scores(subject: Subject, images: np.ndarray) -> Scores:
        """R@1, 5 and 10 of both directions and their means, by the set's own rule of what is right."""
        import torch

        from eval.ranks import retrieval_ranks

        assert subject.pairs is not None
        ranks = retrieval_ranks(replace(subject.pairs, images=images), torch.device(subject.device))
        groups = np.arange(len(images)), subject.pairs.text_groups
        hits = [np.stack([found <= k for k in RECALL_KS]) for found in (ranks.image_to_text, ranks.text_to_image)]
        recalls = {
            names.of_direction(d, names.recall(k)): float(own[i].mean())
            for d, own in zip(DIRECTIONS, hits, strict=True)
            for i, k in enumerate(RECALL_KS)
        }
        of_direction = {
            names.of_direction(d, names.MEAN_RECALL): float(own.mean())
            for d, own in zip(DIRECTIONS, hits, strict=True)
        }  # fmt: skip
        mean = float(np.mean(list(of_direction.values())))
        queries = [(own.mean(axis=0), of) for own, of in zip(hits, groups, strict=True)]
        return Scores({names.MEAN_RECALL: mean, **of_direction, **recalls}, queries)


@dataclass(frozen=True)
class ClassRobustness(UnderCorruptions):
    """Classes under corruptions: by nearest neighbours in the clean gallery, and shown by prompts where there are."""

    needs: ClassVar[tuple[Need, ...]] = ("pictures", "labels")
    title: ClassVar[str] = "Robustness of classes"
    score: ClassVar[str] = "k-NN accuracy"
    mean: ClassVar[str] = names.CORRUPTED_KNN
    retained: ClassVar[str] = names.RETAINED_KNN
    drawn: ClassVar[str] = "accuracy"
    curves: ClassVar[Mapping[str, str]] = {names.KNN: "k-NN", names.ZERO_SHOT: "zero-shot"}

    def expect(self, known: Known) -> None:
        """Raise where there is nothing to compare."""
        expect_others(known, "k-NN")

    @staticmethod
    def scores(subject: Subject, images: np.ndarray) -> Scores:
        """Accuracy of the pictures that have a class."""
        is_right = pictures_are_right(subject, images)
        metrics = {names.KNN: float(is_right.mean())}
        if (prompts := subject.prompts) is not None:
            rows = np.flatnonzero(prompts.labels >= 0)
            ranks = rank_classes(images, rows, prompts.features, prompts.labels[rows])
            metrics[names.ZERO_SHOT] = float(np.mean(ranks == 1))
        return Scores(metrics, [(is_right.astype(np.float64), np.arange(len(is_right)))])


@dataclass(frozen=True)
class _Example:
    """One picture of the set, small, as JPEG in base64, under each corruption; seen by the rank that reads it."""

    sample: int
    seen: dict[tuple[str, int], str] = field(default_factory=dict)  # by corruption and severity; ("", 0): clean

    @classmethod
    def of(cls, subject: Subject) -> _Example:
        return cls(int(np.random.default_rng((0, 5)).permutation(subject.samples)[0]))

    def see(self, key: tuple[str, int], pictures: Tensor, samples: np.ndarray) -> None:
        for row in np.flatnonzero(samples == self.sample)[:1]:
            self.seen[key] = _small_jpeg(pictures[row].cpu().numpy())

    def gathered(self) -> dict[tuple[str, int], str]:
        from core.distributed import gather_objects

        return {key: picture for seen in reversed(gather_objects(self.seen)) for key, picture in seen.items()}


@dataclass(frozen=True)
class _Changing:
    """What is done to pictures before they are encoded."""

    corruption: str
    severity: int
    seed: int
    example: _Example

    def __call__(self, pictures: Tensor, samples: np.ndarray) -> Tensor:
        changed = corrupt(pictures, samples, self.corruption, self.severity, self.seed)
        self.example.see(("", 0), pictures, samples)
        self.example.see((self.corruption, self.severity), changed, samples)
        return changed


def _tallies(clean: Scores, under: Sequence[Sequence[Scores]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each part of the queries `(Q, 1 + corruptions)` shares, clean and as the mean over severities; and groups."""
    return [
        (np.stack([values, *(np.mean([cell.queries[i][0] for cell in row], axis=0) for row in under)], axis=1), groups)
        for i, (values, groups) in enumerate(clean.queries)
    ]


def _resampled_means(tallies: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """`(R, 1 + corruptions)` means of queries that are drawn with replacement, in whole groups.

    All columns share a draw, clean pictures with corrupted ones; and so do the directions of retrieval, where both
    are grouped by image.
    """
    means = []
    for values, groups in tallies:
        *drawn, sizes = resampled_sums(group_sums(np.stack([*values.T, np.ones(len(values))]), groups))
        means.append(np.array(drawn) / sizes)
    return np.mean(means, axis=0).T


def _small_jpeg(picture: np.ndarray) -> str:
    from PIL import Image

    from core.image import encode_jpeg

    image = Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0)))
    image.thumbnail((_SHOWN_SIZE, _SHOWN_SIZE), Image.Resampling.BOX)
    return base64.b64encode(encode_jpeg(image, _SHOWN_QUALITY)).decode()


def _sheet(part: Mapping[str, Any]) -> str:
    """The example's pictures, a row for each corruption."""
    example, severities = part["example"], part["severities"]

    def cell(picture: str, what: str) -> str:
        style = f"display:block;width:{_SHOWN_SIZE}px;min-width:{_SHOWN_SIZE}px;border-radius:4px"
        source = f"data:image/jpeg;base64,{escape(picture)}"
        return f'<td><img src="{source}" alt="{escape(what)}" style="{style}" loading="lazy"></td>'

    head = "".join(f"<th>severity {severity}</th>" for severity in severities)
    rows = "".join(
        f'<tr><td class="nowrap">{escape(_spoken(name))}</td>'
        + "".join(cell(p, f"{_spoken(name)}, severity {s}") for p, s in zip(pictures, severities, strict=True))
        + "</tr>"
        for name, pictures in zip(part["corruptions"], example["under"], strict=True)
    )
    clean = f"<tr><td>clean</td>{cell(example['clean'], 'clean')}{'<td></td>' * (len(severities) - 1)}</tr>"
    return (
        f"<h3>Sample {example['sample']} as the encoder was shown it</h3>"
        f'<div class="card scroll"><table><tr><th></th>{head}</tr>{clean}{rows}</table></div>'
    )


def _spoken(name: str) -> str:
    return name.replace("_", " ").replace("/", " ")


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _share(row: Sequence[float], clean: float) -> str:
    return f"{_percent(float(np.mean(row)) / clean)} %" if clean else "–"


def _between(part: Mapping[str, Any], figure: str) -> str:
    interval = part["intervals"][figure]
    return f"[{_percent(interval['low'])}, {_percent(interval['high'])}]"


def _number(things: Sequence[object], one: str, more: str) -> str:
    return f"{len(things)} {one if len(things) == 1 else more}"
