"""Evaluated run folders without a network: random features of one set with the files that an evaluation leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from core.manifest import load_manifest
from eval.baseline import save_of_each, save_ranks
from eval.captions_file import captions_identity
from eval.evaluations import figures_of, measure_all
from eval.evaluations.evaluation import Subject
from eval.evaluations.knn import KNN
from eval.evaluations.retrieval import Retrieval
from eval.features import Extracted, save_features
from eval.metrics import FeatureSet
from eval.ranks import retrieval_ranks
from trainer.trackers.metrics_csv import MetricsCsv

NUM_IMAGES, NUM_CAPTIONS = 24, 2
CLASSES = ("cat", '<b onclick="x">dog</b> & co')


def write_evaluated(folder: Path, shards: str, seed: int, captions: Path | None = None, **recipe: Any) -> Path:
    """A run folder as `shardclip eval` leaves it.

    Args:
        shards: a set of 24 pictures with two captions each, of which every second one is a dog.
        captions: a file with as many, in place of the set's own.
        recipe: further keys of the training recipe.
    """
    random = np.random.default_rng(seed)
    images = _unit(random.standard_normal((NUM_IMAGES, 8)))
    image_of_text = np.repeat(np.arange(NUM_IMAGES), NUM_CAPTIONS)
    texts = _unit(images[image_of_text] + 0.7 * random.standard_normal((len(image_of_text), 8)))
    features = FeatureSet(images, texts, image_of_text)
    ranks, labels = retrieval_ranks(features), np.arange(NUM_IMAGES) % 2
    places = np.stack([image_of_text, np.tile(np.arange(NUM_CAPTIONS), NUM_IMAGES)], axis=1)
    measured = measure_all(
        {"retrieval": Retrieval(), "knn": KNN()}, Subject(features.images, labels=labels, pairs=features, ranks=ranks)
    )
    captions_from = captions_identity(captions) if captions else ""
    folder.mkdir(parents=True)
    save_ranks(ranks, features, folder / "ranks.safetensors", captions_from)
    save_of_each(
        {k: v for found in measured.values() for k, v in found.of_each.items()}, folder / "of_each.safetensors"
    )
    extracted = Extracted(features, np.arange(NUM_IMAGES), places, 1.0)
    save_features(extracted, folder / "features.safetensors", f"encoder {seed}", "shards")
    figures = figures_of(measured)
    per_class = [float(share) for share in random.random(2).round(2)]
    results = {
        "format_version": 1, "run_dir": ".", "checkpoint": "step-00000003", "encoder": f"encoder {seed}",
        "captions_from": captions_from, "protocol": "full gallery", "embed_dim": 8, "text_encoder": "random",
        "evaluated": "2026-11-22 10:00:00", "hardware": "2 cores",
        "shards": [{"url": shards, "fingerprint": load_manifest(shards).fingerprint}],
        "image_to_text": {}, "other_protocols": [], "figures": figures,
        "knn": {"labels": "the same", "gallery": "leave-one-out"},
        "zero_shot_labelled": {"classes": list(CLASSES), "per_class": per_class},
        "config": {"captions": str(captions) if captions else None},
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "run.json").write_text(json.dumps({"name": folder.name}))
    (folder / "environment.json").write_text(json.dumps({"cpu": "some", "packages": {"torch": "2"}, "started": seed}))
    made = {"run_dir": str(folder), "seed": 0, "optim": {"lr": 0.1, "betas": [0.9, 0.98]}, **recipe}
    (folder / "config.yaml").write_text(json.dumps(made))  # which is YAML, too
    metrics = MetricsCsv(folder, None)
    for step in (1, 2, 3):
        metrics.log(
            {
                "train/loss": 5 / step + seed,
                "train/only_mine" if seed else "train/only_here": step,
                "val/text_to_image/recall@10": step / 10,
            },
            step,
            8 * step,
        )
    metrics.log({"perf/verdict": "decode-bound", "train/nonfinite_steps": 0}, 3, 24)
    metrics.flush()
    return folder


def _unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
