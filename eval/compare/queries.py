"""Captions that one run finds the picture of and another does not: those whose rank changes most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from core.errors import DamagedError
from eval.baseline import read_tensors
from eval.compare.early import ComparedRun
from eval.early import FEATURES, RANKS
from eval.evaluations.retrieval import best_rows
from eval.features import Extracted, load_features
from trainer.telemetry.names import TEXT_TO_IMAGE

FOUND = 5  # a caption finds its picture where that is among the first so many
COUNT = 5  # captions, each way


def features_of(runs: Sequence[ComparedRun]) -> list[Extracted]:
    """What every run made of the same pictures and captions.

    Raises:
        DamagedError: they are not the same, so a file is not of its evaluation.
    """
    found = [load_features(run.folder / FEATURES, encoder=run.results["encoder"]) for run in runs]
    for run, own in zip(runs, found, strict=True):
        if not np.array_equal(own.captions, found[0].captions) or not np.array_equal(own.samples, found[0].samples):
            raise DamagedError(f"compare: {run.folder / FEATURES} is of other pictures. Run `shardclip eval` again.")
    return found


def swapped(
    found_ranks: np.ndarray, lost_ranks: np.ndarray, image_of_text: np.ndarray, count: int = COUNT
) -> np.ndarray:
    """Captions `(n,)` whose picture is among the first 5 by one run and not by the other, the largest change first.

    Args:
        found_ranks, lost_ranks: `(T,)` of the run that finds it, and of the other.
        image_of_text: `(T,)`: of an image's captions the one that changes most; equal changes in the set's order.
    """
    rows = np.flatnonzero((found_ranks <= FOUND) & (lost_ranks > FOUND))
    rows = rows[np.argsort(found_ranks[rows] - lost_ranks[rows], kind="stable")]
    first = np.unique(image_of_text[rows], return_index=True)[1]
    chosen: np.ndarray = rows[np.sort(first)][:count]
    return chosen


def disagreements(runs: Sequence[ComparedRun], features: Sequence[Extracted]) -> list[dict[str, Any]]:
    """For each run but the first, both ways: captions with what the two runs find.

    Returns:
        `{"finds": 1, "misses": 0, "queries": [{"caption": {"sample": ..., "place": ...}, "sample": ..., "found":
        [{"run": 1, "rank": ..., "answers": [{"sample": ..., "score": ..., "is_right": ...}]}, ...]}]}`; runs by number.
    """
    ranks = [read_tensors(run.folder / RANKS)[0][TEXT_TO_IMAGE] for run in runs]
    shown = []
    for other in range(1, len(runs)):
        for finds, misses in ((other, 0), (0, other)):
            rows = swapped(ranks[finds], ranks[misses], features[0].features.image_of_text)
            answers = {run: _answers(features[run], rows) for run in (finds, misses)}
            queries = [
                {
                    "caption": dict(zip(("sample", "place"), map(int, features[0].captions[row]), strict=True)),
                    "sample": int(features[0].samples[features[0].features.image_of_text[row]]),
                    "found": [
                        {"run": run, "rank": int(ranks[run][row]), "answers": answers[run][i]} for run in answers
                    ],
                }
                for i, row in enumerate(rows)
            ]
            shown.append({"finds": finds, "misses": misses, "queries": queries})
    return shown


def _answers(extracted: Extracted, rows: np.ndarray) -> list[list[dict[str, Any]]]:
    """What each of some captions finds, best first."""
    features = extracted.features
    best, scores = best_rows(features.texts[rows], features.images, FOUND)
    return [
        [
            {
                "sample": int(extracted.samples[image]),
                "score": round(float(score), 4),
                "is_right": bool(features.right.are_right(int(image), np.array([row]))[0]),
            }
            for image, score in zip(best[i], scores[i], strict=True)
        ]
        for i, row in enumerate(rows)
    ]
