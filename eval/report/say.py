"""The figures of an evaluation in a few lines of the console."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from eval.evaluations import EVALUATIONS
from trainer.telemetry import names
from trainer.telemetry.names import DIRECTIONS, RECALL_KS


def say_results(results: Mapping[str, Any], report: Path, console: Console) -> None:
    """Print the headline of each part, and where the report lies."""
    if "protocol" in results:
        console.print(f"protocol: {results['protocol']}", markup=False)
        for direction in DIRECTIONS:
            figures = results[direction]
            recalls = "  ".join(f"R@{k} {100 * figures[names.recall(k)]:.1f} %" for k in RECALL_KS)
            console.print(f"{direction.replace('_', ' ')}: {recalls}  median rank {figures['median_rank']:.0f}")
    if knn := results.get("knn"):
        where = (
            knn["gallery"] if isinstance(knn["gallery"], str) else f"among {knn['gallery']['num_images']:,} pictures"
        )
        accuracies = [f"{100 * results['figures'][name]:.1f} %" for name in (names.KNN, names.KNN1)]
        console.print(
            f"k-NN over {knn['num_classes']} classes, {where}: {accuracies[0]}; nearest alone {accuracies[1]}"
        )
    if labelled := results.get("zero_shot_labelled"):
        count = len(labelled["classes"])
        console.print(f"zero-shot over {count} classes: top-1 {100 * labelled['top1']:.1f} %")
    for name, parts in results["evaluations"].items():
        for part in parts:
            values = ", ".join(f"{value} {meaning}" for value, meaning in EVALUATIONS[name].section(part).values)
            where = f" on {' + '.join(part['shards'])}" if len(parts) > 1 else ""
            if values:
                console.print(f"{EVALUATIONS[name].title.lower()}{where}: {values}", markup=False)
    console.print(f"report: {report}", markup=False)
