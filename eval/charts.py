"""Which charts an evaluation has: from `results.json` and the rows of `metrics.csv` to figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eval.metrics import RECALL_KS
from eval.plots import (
    LIGHT,
    Figure,
    PictureRow,
    Series,
    Theme,
    class_bars,
    confusion_matrix,
    curves,
    picture_rows,
    rank_histogram,
    recall_bars,
    similarity_matrix,
)
from eval.retrieval import DIRECTIONS
from trainer.trackers.metrics_csv import Row

_HISTORY: tuple[tuple[str, str, str, dict[str, str], bool], ...] = (
    (
        "learning_rate", "Learning rate", "per group of parameters",
        {"tower": "train/lr_tower", "head": "train/lr_head"}, False,
    ),
    (
        "data_wait", "Waiting for data", "share of a step that the devices wait, by cause",
        {"read": "perf/wait_read_share", "decode": "perf/wait_decode_share", "copy": "perf/wait_copy_share"}, True,
    ),
    ("images_per_s", "Speed", "images per second, all processes together", {"images/s": "perf/images_per_s"}, False),
    ("gradient_norm", "Gradient norm", "before clipping; mean of each window", {"norm": "train/grad_norm"}, False),
    ("logit_scale", "Logit scale", "1 / temperature", {"logit scale": "train/logit_scale"}, False),
    (
        "geometry", "Alignment and uniformity", "of the last batch; lower is better for both (Wang and Isola 2020)",
        {"alignment": "train/alignment", "uniformity of images": "train/uniformity_image"}, False,
    ),
)  # fmt: skip  # name, title, note, curves, whether shares


def result_charts(results: Mapping[str, Any], folder: Path, theme: Theme = LIGHT) -> dict[str, Figure]:
    """Charts of what was measured, by name; parts that `results` lacks have none. `folder` holds the thumbnails."""
    charts: dict[str, Figure] = {}
    if "image_to_text" in results:
        recalls = {d: {k: results[d][f"recall@{k}"] for k in RECALL_KS} for d in DIRECTIONS}
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
    return charts


def sheets(results: Mapping[str, Any], folder: Path, theme: Theme = LIGHT) -> dict[str, Figure]:
    """Sheets of pictures for trackers and slides (the report has the same as text and images)."""
    figures: dict[str, Figure] = {}
    if queries := results.get("queries"):
        figures["text_queries"] = picture_rows(
            "Text queries", "the images nearest to each query, with their cosine", _rows(queries, folder), theme
        )
    if examples := results.get("examples"):
        figures["caption_to_images"] = picture_rows(
            "Captions and the images they find", "captions drawn at random; green: the caption's own image",
            _rows(examples["captions"], folder), theme,
        )  # fmt: skip
    for name in ("zero_shot", "zero_shot_labelled"):
        if part := results.get(name):
            figures[name] = _class_sheet(part, folder, theme)
    return figures


def training_charts(rows: Sequence[Row], theme: Theme = LIGHT) -> dict[str, Figure]:
    """Charts of the run's history, by name; what was never measured has none."""
    charts: dict[str, Figure] = {}
    losses = _series(rows, {"training": "train/loss", "validation": "val/loss"})
    if losses:
        charts["loss"] = curves("Loss", "in nats, over samples seen", losses, theme, marked=["validation"])
    names = {f"{d.replace('_', ' ')} R@{k}": f"val/{d}/recall@{k}" for k in (10, 1) for d in DIRECTIONS}
    if recalls := _series(rows, names):
        charts["recall_curves"] = curves(
            "Recall while training", "on the validation set", recalls, theme, percent=True, marked=list(names)
        )
    for chart, title, note, metrics, percent in _HISTORY:
        if found := _series(rows, metrics):
            charts[chart] = curves(title, note, found, theme, percent=percent)
    return charts


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
