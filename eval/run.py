"""Evaluate a checkpoint: `shardclip eval configs/eval/flickr8k_sample.yaml`; numbers, pictures and one report."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import safe_open
from safetensors.numpy import save

from core.config import Choice, to_mapping
from core.errors import ConfigError, DataError
from core.host_memory import keep_freed_memory
from core.shard_set import ShardSet
from core.storage import publish_bytes
from eval.charts import result_charts, sheets, training_charts
from eval.encoder import ImageEncoder, load_encoder, open_same_text, text_embedder, trained_embedder
from eval.exhibits import Shelf, rank_bands, show_queries, show_retrieval, show_similarity
from eval.features import Extracted, extract, mean_pair_loss, save_features
from eval.metrics import RECALL_KS, Ranks, paired_bootstrap
from eval.plots import save_jpeg, save_png
from eval.report import RESULTS, write_report
from eval.retrieval import DIRECTIONS, PROTOCOLS, evaluate_retrieval, recall_intervals
from eval.zero_shot import (
    EmbedTexts,
    check_templates,
    class_features,
    class_probabilities,
    read_lines,
    score_labels,
    spoken_class,
)
from trainer.data.loader import TEXT_ALONE, EvalLoader
from trainer.run.environment import describe_environment, hardware
from trainer.trackers.metrics_csv import METRICS, read_metrics

RANKS, FEATURES = "ranks.safetensors", "features.safetensors"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class EvalConfig:
    """A recipe of `shardclip eval`."""

    checkpoint: Path  # a run folder (its best checkpoint), RUN/best, RUN/latest or a checkpoint folder
    shards: tuple[str, ...]  # images with captions: retrieval, queries, unlabelled zero-shot
    out: Path | None = None  # None: the run folder
    protocols: tuple[str, ...] = ("full",)  # full, coco-5k, coco-1k-5fold; the first one is the headline
    queries: tuple[str, ...] = ()  # free text, each shown with the images it finds
    classes: tuple[str, ...] = ()  # for zero-shot classes of images without labels
    classes_file: Path | None = None  # or a file with one class per line
    templates: tuple[str, ...] = ("a photo of a {}.",)
    templates_file: Path | None = None  # or a file with one template per line
    labelled_shards: tuple[str, ...] = ()  # images with class labels: zero-shot accuracy
    text_encoder: Choice | None = None  # for queries and classes; None: found by the name that the shards give
    baseline: Path | None = None  # an earlier evaluation of the same shards: paired intervals of the difference
    num_examples: int = 6  # random captions and images to show, and twice as many zero-shot pictures
    loss_batch_size: int | None = None  # of the validation loss; None: the global batch that it was trained with
    batch_size: int = 256
    num_workers: int = 2
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["no", "bf16", "fp16"] = "no"  # float32: figures that hold to the last digit
    cache_dir: Path | None = None

    def __post_init__(self) -> None:
        for protocol in self.protocols:
            if protocol not in PROTOCOLS:
                raise ConfigError(f"protocols: unknown protocol '{protocol}'. Known: {', '.join(PROTOCOLS)}.")
        check_templates(self.all_templates())

    def all_classes(self) -> tuple[str, ...]:
        """Classes for images without labels."""
        return read_lines(self.classes_file) if self.classes_file else self.classes

    def all_templates(self) -> tuple[str, ...]:
        """Prompt templates."""
        return read_lines(self.templates_file) if self.templates_file else self.templates


def evaluate(config: EvalConfig, console: Console) -> dict[str, Any]:
    """Measure, write `results.json`, pictures and `report.html` into the output folder, and say the recall.

    Returns:
        What `results.json` holds; recalls are shares from 0 to 1.
    """
    started = time.monotonic()
    device = _device(config.device)
    if device.type == "cpu":
        keep_freed_memory()
    encoder = load_encoder(config.checkpoint, device)
    run_dir = encoder.path.parent.parent
    out = config.out or run_dir
    console.print(f"evaluating {encoder.path} on {', '.join(config.shards)} -> {out}")
    shard_set = open_same_text(encoder, config.shards, config.cache_dir)
    embed_texts = _lazy_embedder(config, encoder, device)

    extracted = _extract(encoder, shard_set, config, device, console)
    shelf = Shelf(shard_set, out / "pictures", "sample")
    results: dict[str, Any] = _identity(config, encoder, shard_set, run_dir, out)
    results["val_loss"] = _loss(extracted, shard_set, encoder, config.loss_batch_size)
    if config.protocols:
        results |= _retrieval(extracted, shelf, config, out)
    results["similarity"] = show_similarity(extracted, shelf, count=20)
    if config.queries:
        results["queries"] = show_queries(extracted, config.queries, embed_texts(config.queries), shelf)
    if classes := config.all_classes():
        results["zero_shot"] = _zero_shot(extracted, shelf, classes, config, embed_texts)
    if labelled := _labelled(config, encoder, shard_set, extracted, device, console):
        results["zero_shot_labelled"] = _zero_shot_labelled(*labelled, config, embed_texts, out)

    results["seconds"] = round(time.monotonic() - started, 1)
    save_features(extracted, out / FEATURES, encoder.fingerprint, shard_set.fingerprint)
    publish_bytes((json.dumps(results, indent=1, ensure_ascii=False) + "\n").encode(), out / RESULTS)
    _save_pictures(results, run_dir, out)
    report = write_report(out)
    _say(results, report, console)
    return results


def _extract(
    encoder: ImageEncoder, shard_set: ShardSet, config: EvalConfig, device: torch.device, console: Console
) -> Extracted:
    loader = EvalLoader(
        shard_set,
        batch_size=config.batch_size,
        columns=TEXT_ALONE if encoder.model.text_encoder is None else {},
        num_workers=config.num_workers,
        pin_memory=device.type == "cuda",
    )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("images", total=len(shard_set))
        try:
            return extract(
                encoder.model,
                encoder.normalize,
                shard_set,
                loader,
                logit_scale=float(encoder.scalars.get("scale", 1.0)),
                device=device,
                autocast=_autocast(config.precision, device),
                progress=partial(progress.advance, task),
            )
        finally:
            loader.close()


def _retrieval(extracted: Extracted, shelf: Shelf, config: EvalConfig, out: Path) -> dict[str, Any]:
    features = extracted.features
    found, gallery_ranks = evaluate_retrieval(features, config.protocols[0])
    results = dict(found)
    full = gallery_ranks[0] if config.protocols[0] == "full" else evaluate_retrieval(features)[1][0]
    results["intervals"] = recall_intervals(features, full) if config.protocols[0] == "full" else {}
    results["other_protocols"] = [evaluate_retrieval(features, name)[0] for name in config.protocols[1:]]
    results["rank_bands"] = rank_bands(full)
    results["examples"] = show_retrieval(extracted, full, shelf, config.num_examples)
    if config.baseline:
        results["against_baseline"] = _against(config.baseline, full, features.image_of_text)
    _save_ranks(full, features.image_of_text, out / RANKS)
    return results


def _zero_shot(
    extracted: Extracted, shelf: Shelf, classes: tuple[str, ...], config: EvalConfig, embed_texts: EmbedTexts
) -> dict[str, Any]:
    """Classes of images that have no labels: shares of each class and examples to judge by eye."""
    templates = config.all_templates()
    named = class_features([spoken_class(name) for name in classes], templates, embed_texts)
    probabilities = class_probabilities(extracted.features.images, named, extracted.logit_scale)
    shown = np.random.default_rng((0, 3)).permutation(len(probabilities))[: 2 * config.num_examples]
    predicted = np.bincount(probabilities.argmax(axis=1), minlength=len(classes))
    return {
        "classes": [spoken_class(name) for name in classes],
        "templates": list(templates),
        "shares": [round(float(share), 4) for share in predicted / predicted.sum()],
        "examples": [_class_example(probabilities[i], int(extracted.samples[i]), None, shelf) for i in shown],
    }


def _zero_shot_labelled(
    shard_set: ShardSet, extracted: Extracted, config: EvalConfig, embed_texts: EmbedTexts, out: Path
) -> dict[str, Any]:
    """Accuracy over the classes that a labelled shard set names."""
    shelf = Shelf(shard_set, out / "pictures", "labelled")
    classes, templates = [spoken_class(name) for name in shard_set.classes], config.all_templates()
    names = [shelf.label(int(sample)) for sample in extracted.samples]
    if unknown := sorted({str(name) for name in names} - set(shard_set.classes)):
        raise DataError(f"{shard_set.urls[0]}: label '{unknown[0]}' is none of the set's classes. Build the set again.")
    labels = np.array([shard_set.classes.index(str(name)) for name in names])
    named = class_features(classes, templates, embed_texts)
    scores = score_labels(extracted.features.images @ named.T, labels)
    probabilities = class_probabilities(extracted.features.images, named, extracted.logit_scale)
    shown = np.random.default_rng((0, 3)).permutation(len(probabilities))[: 2 * config.num_examples]
    return {
        "shards": list(shard_set.urls),
        "classes": classes,
        "templates": list(templates),
        **scores,
        "examples": [_class_example(probabilities[i], int(extracted.samples[i]), int(labels[i]), shelf) for i in shown],
    }


def _class_example(probabilities: np.ndarray, sample: int, right: int | None, shelf: Shelf) -> dict[str, Any]:
    rounded = [round(float(p), 4) for p in probabilities]
    return {"picture": shelf.picture(sample), "probabilities": rounded, "right": right}


def _labelled(
    config: EvalConfig,
    encoder: ImageEncoder,
    shard_set: ShardSet,
    extracted: Extracted,
    device: torch.device,
    console: Console,
) -> tuple[ShardSet, Extracted] | None:
    if not config.labelled_shards:
        return (shard_set, extracted) if shard_set.classes else None
    labelled = open_same_text(encoder, config.labelled_shards, config.cache_dir)
    if not labelled.classes:
        raise DataError(
            f"{config.labelled_shards[0]}: has no class labels. Build it with the image_folder reader, or with labels"
            " in its jsonl."
        )
    return labelled, _extract(encoder, labelled, config, device, console)


def _loss(extracted: Extracted, shard_set: ShardSet, encoder: ImageEncoder, batch_size: int | None) -> dict[str, Any]:
    image_ids = shard_set.image_ids(extracted.samples)
    wanted = batch_size or int(encoder.identity["config"]["global_batch_size"])
    used = min(wanted, len(extracted.samples))
    return {
        "value": mean_pair_loss(extracted, image_ids, encoder.objective, encoder.scalars, wanted),
        "batch_size": used,
    }


def _identity(
    config: EvalConfig, encoder: ImageEncoder, shard_set: ShardSet, run_dir: Path, out: Path
) -> dict[str, Any]:
    environment = describe_environment(world_size=1)
    return {
        "format_version": FORMAT_VERSION,
        "evaluated": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S"),
        "run": run_dir.parent.name if run_dir.name == "run" else run_dir.name,
        "run_dir": os.path.relpath(run_dir, out),  # relative: the folders may move together
        "checkpoint": encoder.path.name,
        "encoder": encoder.fingerprint,
        "embed_dim": encoder.identity["model"]["embed_dim"],
        "text_encoder": encoder.text_name,
        "shards": [
            {
                "url": url,
                "split": manifest.split,
                "num_samples": manifest.num_samples,
                "num_captions": manifest.num_captions,
                "skipped": dict(manifest.skipped),
                "fingerprint": manifest.fingerprint,
            }
            for url, manifest in zip(shard_set.urls, shard_set.manifests, strict=True)
        ],
        "hardware": hardware(environment),
        "config": to_mapping(config),
    }


def _against(baseline: Path, ranks: Ranks, image_of_text: np.ndarray) -> dict[str, Any]:
    path = baseline / RANKS
    if not path.exists():
        raise ConfigError(f"baseline: {path} is missing. Name the folder of an earlier `shardclip eval`.")
    with safe_open(path, framework="numpy") as file:
        before = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    if not np.array_equal(before["image_of_text"], image_of_text):
        raise DataError(f"baseline: {path} is of other shards. Evaluate both runs on the same shards.")
    gains: dict[str, Any] = {"folder": str(baseline)}
    for direction, groups in (("image_to_text", None), ("text_to_image", image_of_text)):
        now = getattr(ranks, direction)
        pairs = {k: paired_bootstrap(before[direction], now, k, groups) for k in RECALL_KS}
        gains[direction] = {str(k): vars(interval) for k, interval in pairs.items()}
    return gains


def _save_ranks(ranks: Ranks, image_of_text: np.ndarray, path: Path) -> None:
    tensors = {
        "image_to_text": ranks.image_to_text,
        "text_to_image": ranks.text_to_image,
        "image_of_text": image_of_text,
    }
    publish_bytes(save(tensors), path)


def _save_pictures(results: dict[str, Any], run_dir: Path, out: Path) -> None:
    folder = out / "pictures"
    charts = result_charts(results, folder)
    if (run_dir / METRICS).exists():
        charts |= training_charts(read_metrics(run_dir / METRICS))
    for name, figure in charts.items():
        save_png(figure, folder / f"{name}.png")
    for name, figure in sheets(results, folder).items():
        save_jpeg(figure, folder / f"{name}.jpg")


def _lazy_embedder(config: EvalConfig, encoder: ImageEncoder, device: torch.device) -> EmbedTexts:
    """Loads the text encoder at its first use: an evaluation without queries and classes needs none."""
    loaded: list[EmbedTexts] = []

    def embed(texts: Any) -> np.ndarray:
        if not loaded:
            tower = encoder.model.text_encoder
            if tower is not None:
                loaded.append(trained_embedder(tower, device))
            else:
                loaded.append(text_embedder(encoder.text_encoder, config.text_encoder, device))
        return loaded[0](texts)

    return embed


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: cuda is asked for and there is none. Use device=auto or device=cpu.")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def _autocast(precision: str, device: torch.device) -> Callable[[], Any]:
    if precision == "no":
        return nullcontext
    return partial(torch.autocast, device.type, torch.bfloat16 if precision == "bf16" else torch.float16)


def _say(results: dict[str, Any], report: Path, console: Console) -> None:
    if "protocol" in results:
        console.print(f"protocol: {results['protocol']}")
        for direction in DIRECTIONS:
            figures = results[direction]
            recalls = "  ".join(f"R@{k} {100 * figures[f'recall@{k}']:.1f} %" for k in RECALL_KS)
            console.print(f"{direction.replace('_', ' ')}: {recalls}  median rank {figures['median_rank']:.0f}")
    if labelled := results.get("zero_shot_labelled"):
        count = len(labelled["classes"])
        console.print(f"zero-shot over {count} classes: top-1 {100 * labelled['top1']:.1f} %")
    console.print(f"report: {report}")
