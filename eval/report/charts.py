"""Which charts an evaluation has: from `results.json` and the rows of `metrics.csv` to figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eval.report.drawing.curves import Series, curves, rank_histogram, recall_bars
from eval.report.drawing.matrices import confusion_matrix, similarity_matrix
from eval.report.drawing.pictures import PictureRow, class_bars, picture_rows
from eval.report.drawing.style import DARK, LIGHT, Figure, Theme, png_bytes
from eval.report.measured import measured_charts
from eval.report.template import inline
from trainer.objectives.objective import IMAGE
from trainer.telemetry import names
from trainer.telemetry.names import DIRECTIONS, RECALL_KS
from trainer.trackers.metrics_csv import Row

_HISTORY: tuple[tuple[str, str, str, dict[str, str], bool], ...] = (
    (
        "learning_rate", "Learning rate", "per group of parameters",
        {"tower": names.lr("tower"), "head": names.lr("head")}, False,
    ),
    (
        "data_wait", "Waiting for data", "share of a step that the devices wait, by cause",
        {cause: names.wait_share_of(cause) for cause in ("read", "decode", "copy")}, True,
    ),
    ("images_per_s", "Speed", "images per second, all processes together", {"images/s": names.IMAGES_PER_S}, False),
    ("gradient_norm", "Gradient norm", "before clipping; mean of each window", {"norm": names.GRAD_NORM}, False),
    ("logit_scale", "Logit scale", "1 / temperature", {"logit scale": names.LOGIT_SCALE}, False),
    (
        "geometry", "Alignment and uniformity", "of the last batch; lower is better for both (Wang and Isola 2020)",
        {"alignment": names.ALIGNMENT, "uniformity of images": names.uniformity(IMAGE)}, False,
    ),
)  # fmt: skip  # name, title, note, curves, whether shares


def result_charts(results: Mapping[str, Any], folder: Path, theme: Theme = LIGHT) -> dict[str, Figure]:
    """Charts of what was measured, by name; parts that `results` lacks have none. `folder` holds the thumbnails."""
    charts: dict[str, Figure] = {}
    if "image_to_text" in results:
        recalls = {d: {k: results[d][names.recall(k)] for k in RECALL_KS} for d in DIRECTIONS}
        note = f"{results['protocol']}; thin lines: 95 % intervals"
        charts["recall"] = recall_bars(recalls, results["intervals"], note, theme)
        bands = results["rank_bands"]
        charts["ranks"] = rank_histogram({d: bands[d] for d in DIRECTIONS}, bands["edges"], theme)
    if "similarity" in results:
        sample = results["similarity"]
        pictures = [read_picture(folder, place) for place in sample["pictures"]]
        charts["similarity"] = similarity_matrix(np.array(sample["cosines"]), sample["captions"], pictures, theme)
    if labelled := results.get("zero_shot_labelled"):
        charts["confusion"] = confusion_matrix(np.array(labelled["confusion"]), labelled["classes"], theme)
    return charts | measured_charts(results, folder, theme)


def sheets(results: Mapping[str, Any], folder: Path, theme: Theme = LIGHT) -> dict[str, Figure]:
    """Sheets of pictures for trackers and slides (the report has the same as text and images)."""
    figures: dict[str, Figure] = {}
    if queries := results.get("queries"):
        figures["text_queries"] = picture_rows(
            "Text queries", "the images nearest to each query, with their cosine", _rows(queries, folder), theme
        )
    if examples := results.get("examples"):
        figures["caption_to_images"] = picture_rows(
            "Captions and the images they find", "captions drawn at random; green: right",
            _rows(examples["captions"], folder), theme,
        )  # fmt: skip
    if neighbours := results.get("knn", {}).get("neighbours"):
        figures["neighbours"] = picture_rows(
            "Pictures and their nearest neighbours", "pictures drawn at random, each first; green: of the same class",
            [_neighbour_row(example, folder) for example in neighbours], theme,
        )  # fmt: skip
    for name in ("zero_shot", "zero_shot_labelled"):
        if part := results.get(name):
            figures[name] = _class_sheet(part, folder, theme)
    return figures


def training_charts(rows: Sequence[Row], theme: Theme = LIGHT) -> dict[str, Figure]:
    """Charts of the run's history, by name; what was never measured has none."""
    charts: dict[str, Figure] = {}
    losses = _series(rows, {"training": names.LOSS, "validation": names.VAL_LOSS})
    if losses:
        charts["loss"] = curves("Loss", "in nats, over samples seen", losses, theme, marked=["validation"])
    shown = {
        f"{d.replace('_', ' ')} R@{k}": names.val(names.of_direction(d, names.recall(k)))
        for k in (10, 1)
        for d in DIRECTIONS
    }
    if recalls := _series(rows, shown):
        charts["recall_curves"] = curves(
            "Recall while training", "on the validation set", recalls, theme, percent=True, marked=list(shown)
        )
    if accuracies := _series(rows, {"k-NN": names.val(names.KNN), "nearest": names.val(names.KNN1)}):
        charts["knn_curves"] = curves(
            "k-NN accuracy while training", "of the frozen features, on the validation set", accuracies, theme,
            percent=True, marked=("k-NN", "nearest"),
        )  # fmt: skip
    for chart, title, note, metrics, percent in _HISTORY:
        if found := _series(rows, metrics):
            charts[chart] = curves(title, note, found, theme, percent=percent)
    return charts


def both_themes(drawn: Callable[[Theme], Mapping[str, Figure]], dpi: int = 160) -> dict[str, dict[str, str]]:
    """Charts for a page, by name: `{"light": address, "dark": address}`, each of which holds the whole picture."""
    light, dark = drawn(LIGHT), drawn(DARK)
    return {
        name: {theme: inline(png_bytes(of[name], dpi), "png") for theme, of in (("light", light), ("dark", dark))}
        for name in light
    }


def read_picture(folder: Path, place: str) -> np.ndarray:
    """A thumbnail as `(S, S, 3)` uint8."""
    with Image.open(folder / place) as image:
        return np.asarray(image.convert("RGB"))


def _rows(examples: Sequence[Mapping[str, Any]], folder: Path) -> list[PictureRow]:
    return [
        PictureRow(
            title=example["query"] + (f"   (rank {example['rank']})" if "rank" in example else ""),
            pictures=[read_picture(folder, answer["picture"]) for answer in example["answers"]],
            notes=[f"{answer['score']:.3f}" for answer in example["answers"]],
            is_right=[answer["is_right"] for answer in example["answers"]],
        )
        for example in examples
    ]


def _neighbour_row(example: Mapping[str, Any], folder: Path) -> PictureRow:
    answers = example["answers"]
    return PictureRow(
        title=example["class"],
        pictures=[read_picture(folder, found["picture"]) for found in (example, *answers)],
        notes=["the picture", *(f"{answer['score']:.3f} {answer['class']}" for answer in answers)],
        is_right=[None, *(answer["is_right"] for answer in answers)],
    )


def _class_sheet(part: Mapping[str, Any], folder: Path, theme: Theme) -> Figure:
    examples = part["examples"]
    return class_bars(
        [read_picture(folder, example["picture"]) for example in examples],
        np.array([example["probabilities"] for example in examples]),
        part["classes"],
        [example["right"] for example in examples],
        theme,
    )


def _series(rows: Sequence[Row], metrics: Mapping[str, str]) -> list[Series]:
    found = []
    for name, metric in metrics.items():
        points = [(row.samples_seen, row.metrics[metric]) for row in rows if metric in row.metrics]
        points = [(x, y) for x, y in points if isinstance(y, float) and np.isfinite(y)]
        if points:
            found.append(Series(name, [x for x, _ in points], [float(y) for _, y in points]))
    return found
