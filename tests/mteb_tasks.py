"""Retrieval tasks of mteb over pictures and captions in memory, both ways; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from trainer.telemetry.names import DIRECTIONS, RECALL_KS, recall

PLACES = {"i2t": "image_to_text", "t2i": "text_to_image"}


def hit_rates(model: Any, images: Sequence[Image.Image], texts: Sequence[str], right: np.ndarray) -> Any:
    """mteb's HitRate@K of a model, under our names: direction -> recall@K -> share, which mteb rounds to five digits.

    Args:
        right: `(N, T)`, which texts are right for which images.
    """
    import mteb

    tasks = [
        _task("i2t", {"image": images}, {"text": texts}, right),
        _task("t2i", {"text": texts}, {"image": images}, right.T),
    ]
    done = mteb.evaluate(model, tasks, cache=None, show_progress_bar=False, co2_tracker=False)
    assert not done.exceptions
    return {
        PLACES[category]: {recall(k): found.scores["test"][0][f"hit_rate_at_{k}"] for k in RECALL_KS}
        for category, found in zip(("i2t", "t2i"), done.task_results, strict=True)
    }


def _task(category: str, queries: dict[str, Any], corpus: dict[str, Any], right: np.ndarray) -> Any:
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    query_ids, document_ids = ([f"{letter}{n:06d}" for n in range(count)] for letter, count in zip("qd", right.shape))

    class Task(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name=f"InMemory{category.upper()}",
            description="Pictures and captions in memory.",
            reference=None,
            dataset={"path": "none", "revision": "none"},
            type="Any2AnyRetrieval",
            category=category,
            modalities=["image", "text"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="hit_rate_at_10",
        )

        def load_data(self, num_proc: int | None = None, **other: Any) -> None:
            split = {
                "queries": Dataset.from_dict({"id": query_ids, **queries}),
                "corpus": Dataset.from_dict({"id": document_ids, **corpus}),
                "relevant_docs": {
                    query: {document_ids[n]: 1 for n in np.flatnonzero(row)} for query, row in zip(query_ids, right)
                },
                "top_ranked": None,
            }
            self.dataset, self.data_loaded = {"default": {"test": split}}, True

    return Task()


assert set(PLACES.values()) == set(DIRECTIONS)
