"""Evaluate a checkpoint: `shardclip eval configs/eval/flickr8k_sample.yaml`; numbers, pictures and one report."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from core.class_captions import answer_ids
from core.columns import column_names
from core.config import dump_yaml, to_mapping
from core.errors import ConfigError, DataError
from core.host_memory import keep_freed_memory
from core.manifest import MANIFEST_NAME
from core.shard_set import ShardSet
from core.storage import exists, join, publish_bytes
from eval.baseline import gains_over, save_ranks
from eval.captions_file import captions_identity, read_captions
from eval.classes import class_vectors, neighbours, zero_shot, zero_shot_labelled
from eval.config import EvalConfig
from eval.early import MARK, RANKS, RESULTS, expect_place
from eval.encoder import (
    LoadedEncoder,
    chosen_device,
    load_encoder,
    open_same_text,
    text_embedder,
    trained_embedder,
)
from eval.evaluations import figures_of
from eval.evaluations.evaluation import Prompts, Subject
from eval.evaluations.retrieval import evaluate_retrieval, recall_intervals
from eval.evaluations.zero_shot import EmbedTexts
from eval.features import (
    Extracted,
    Pictures,
    extract,
    extract_pictures,
    has_pair_loss,
    mean_pair_loss,
    save_features,
    shards_stamp,
)
from eval.gallery import GallerySource, joint_classes
from eval.labels import Labels, label_column, labels_of
from eval.metrics import FeatureSet, Ranks
from eval.own_captions import with_captions
from eval.ranks import retrieval_ranks
from eval.report.charts import result_charts, sheets, training_charts
from eval.report.drawing import save_jpeg, save_png
from eval.report.exhibits import Shelf, rank_bands, show_queries, show_retrieval, show_similarity
from eval.report.page import PICTURES, write_report
from eval.report.say import say_results
from eval.right_answers import captions_of, with_class_answers, with_equal_captions
from trainer.data.loader import TEXT_ALONE, EvalLoader
from trainer.data.names import LABEL
from trainer.run.environment import describe_environment, hardware
from trainer.trackers.metrics_csv import METRICS, read_metrics

FEATURES = "features.safetensors"
FORMAT_VERSION = 1


def evaluate(config: EvalConfig, console: Console) -> dict[str, Any]:
    """Measure, write `results.json`, pictures and `report.html` into the output folder, and say the figures.

    Returns:
        What `results.json` holds; recalls and accuracies are shares from 0 to 1.

    Raises:
        ConfigError: there is nothing to measure, or text is asked for and the checkpoint compares none.
    """
    started = time.monotonic()
    device = chosen_device(config.device)
    if device.type == "cpu":
        keep_freed_memory()
    encoder = load_encoder(config.checkpoint, device)
    run_dir = encoder.path.parent.parent
    expect_place(config, encoder.path)
    out = config.out or run_dir
    console.print(f"evaluating {encoder.path} on {', '.join(config.shards)} -> {out}", markup=False)
    if not encoder.compares_text:
        _expect_nothing_of_text(config, encoder)
    work = Evaluating(config, encoder, out, device, console)
    shard_set = work.open(config.shards)
    labelled = _labelled_set(work, shard_set)
    own_captions = read_captions(config.captions, shard_set) if config.captions else None

    found = work.extract(shard_set, own_captions)
    publish_bytes(dump_yaml(config).encode(), out / MARK)  # the folder is ours from now on
    results: dict[str, Any] = _identity(work, shard_set, found, run_dir)
    subject = Subject(pictures_of(found).images)
    if isinstance(found, Extracted):
        ranks = retrieval_ranks(found.features, device)
        subject = replace(subject, pairs=found.features, ranks=ranks)
        results |= _of_text(work, shard_set, found, ranks, own_captions)
    results["figures"] = figures_of(subject)
    if labelled:
        is_whole = labelled.shard_set is shard_set and own_captions is None  # not only the pictures of a captions file
        results |= _of_classes(work, labelled, found if is_whole else None, results)

    results["seconds"] = round(time.monotonic() - started, 1)
    save_features(found, out / FEATURES, encoder.fingerprint, shards_stamp(shard_set.fingerprint, work.captions_from))
    publish_bytes((json.dumps(results, indent=1, ensure_ascii=False) + "\n").encode(), out / RESULTS)
    _save_pictures(results, run_dir, out)
    say_results(results, write_report(out), console)
    return results


@dataclass(frozen=True, eq=False)
class Evaluating:
    """One evaluation under way."""

    config: EvalConfig
    encoder: LoadedEncoder
    out: Path
    device: torch.device
    console: Console

    @cached_property
    def embed_texts(self) -> EmbedTexts:
        """Loads the text encoder at its first use: an evaluation without queries and classes needs none."""
        if (tower := self.encoder.model.text_encoder) is not None:
            return trained_embedder(tower, self.device)
        assert self.encoder.text_encoder is not None
        return text_embedder(self.encoder.text_encoder, self.config.text_encoder, self.device)

    @cached_property
    def captions_from(self) -> str:
        """The file that captions are from, where they are not the shards' own."""
        return captions_identity(self.config.captions) if self.config.captions else ""

    def open(self, urls: Sequence[str]) -> ShardSet:
        """Sets with the captions that the checkpoint compares, if it does."""
        if self.encoder.compares_text:
            return open_same_text(self.encoder, urls, self.config.cache_dir)
        return ShardSet.open(urls, self.config.cache_dir, text="")

    def shelf(self, shard_set: ShardSet, name: str, captions: Mapping[int, Sequence[str]] | None = None) -> Shelf:
        """Thumbnails and captions of a set, for the report."""
        return Shelf(shard_set, self.out / PICTURES, name, captions)

    def extract(self, shard_set: ShardSet, captions: Mapping[int, list[str]] | None = None) -> Extracted | Pictures:
        """Features of the whole set, with captions where the checkpoint compares them; and what is right in them.

        Args:
            captions: by sample number, in place of the set's own; pictures without are left out.
        """
        if captions is not None:
            pictures = pictures_of(self._extract(shard_set, None, with_text=False))
            found = with_captions(pictures, shard_set, captions, self.embed_texts, self.encoder.logit_scale)
            left_out = len(pictures.samples) - len(found.samples)
            if left_out:
                self.console.print(
                    f"{left_out:,} of {len(pictures.samples):,} pictures have no line in the captions file."
                )
        else:
            extracted = self._extract(shard_set, None, with_text=self.encoder.compares_text)
            if isinstance(extracted, Pictures):
                return extracted
            found = with_class_answers(extracted, shard_set, self.encoder.model.text_encoder is not None)
        if not self.config.equal_captions:
            return found
        texts = [text for own in captions.values() for text in own] if captions else captions_of(found, shard_set)
        return with_equal_captions(found, texts)

    def extract_gallery(self, source: GallerySource) -> Pictures:
        """Features of a gallery's samples."""
        found = self._extract(source.shard_set, source.samples, with_text=False)
        assert isinstance(found, Pictures)
        return found

    def _extract(self, shard_set: ShardSet, samples: np.ndarray | None, with_text: bool) -> Extracted | Pictures:
        loader = EvalLoader(
            shard_set,
            batch_size=self.config.batch_size,
            samples=samples,
            columns=TEXT_ALONE if with_text and self.encoder.model.text_encoder is None else {},
            num_workers=self.config.num_workers,
            pin_memory=self.device.type == "cuda",
        )
        bar = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*bar, console=self.console, transient=True) as progress:
            task = progress.add_task("images", total=len(shard_set) if samples is None else len(samples))
            given = (self.encoder.model, self.encoder.normalize, shard_set, loader)
            where: dict[str, Any] = {
                "device": self.device,
                "autocast": _autocast(self.config.precision, self.device),
                "progress": partial(progress.advance, task),
            }
            try:
                if with_text:
                    return extract(*given, logit_scale=self.encoder.logit_scale, **where)
                return extract_pictures(*given, samples, **where)
            finally:
                loader.close()


@dataclass(frozen=True, eq=False)
class LabelledSet:
    """A set whose samples have classes, and where k-NN looks for neighbours (None: in the set itself)."""

    shard_set: ShardSet
    labels: Labels
    gallery: GallerySource | None


def pictures_of(found: Extracted | Pictures) -> Pictures:
    """The pictures' features."""
    return found.pictures if isinstance(found, Extracted) else found


def _of_text(
    work: Evaluating, shard_set: ShardSet, found: Extracted, ranks: Ranks, captions: Mapping[int, Sequence[str]] | None
) -> dict[str, Any]:
    """Loss, retrieval, similarity, queries and classes of pictures with captions."""
    config, encoder, shelf = work.config, work.encoder, work.shelf(shard_set, "sample", captions)
    results: dict[str, Any] = {}
    if has_pair_loss(encoder.objective):
        results["val_loss"] = _loss(work, found, shard_set)
    if config.protocols:
        results |= _retrieval(work, found, ranks, shelf)
    results["similarity"] = show_similarity(found, shelf, count=12)
    if config.queries:
        results["queries"] = show_queries(found, config.queries, work.embed_texts(config.queries), shelf)
    if classes := config.all_classes():
        results["zero_shot"] = zero_shot(
            found.pictures, classes, config.all_templates(), work.embed_texts, found.logit_scale, shelf,
            2 * config.num_examples,
        )  # fmt: skip
    return results


def _retrieval(work: Evaluating, extracted: Extracted, ranks: Ranks, shelf: Shelf) -> dict[str, Any]:
    config, features = work.config, extracted.features

    def count_ranks(gallery: FeatureSet) -> Ranks:
        return ranks if gallery is features else retrieval_ranks(gallery, work.device)

    first, *others = (evaluate_retrieval(features, count_ranks, name, work.captions_from) for name in config.protocols)
    results = dict(first)
    results["intervals"] = recall_intervals(features, ranks) if config.protocols[0] == "full" else {}
    results["other_protocols"] = others
    results["rank_bands"] = rank_bands(ranks)
    results["examples"] = show_retrieval(extracted, ranks, shelf, config.num_examples)
    if config.baseline:
        results["against_baseline"] = gains_over(config.baseline, ranks, features, work.captions_from)
    save_ranks(ranks, features, work.out / RANKS, work.captions_from)
    return results


def _of_classes(
    work: Evaluating, labelled: LabelledSet, found: Extracted | Pictures | None, results: Mapping[str, Any]
) -> dict[str, Any]:
    """k-NN of a labelled set, and zero-shot accuracy where there is text.

    Args:
        found: its features, where they are known already.
    """
    found = found or work.extract(labelled.shard_set)
    pictures, source = pictures_of(found), labelled.gallery
    classes = joint_classes(labelled.labels, source)
    gallery = source.gallery(work.extract_gallery(source), classes) if source else None
    labels = labelled.labels.among(classes)[pictures.samples]
    subject = Subject(pictures.images, labels, gallery=gallery)
    own = work.shelf(labelled.shard_set, "labelled")
    others = work.shelf(source.shard_set, "gallery") if source else own
    config = work.config
    urls = {"shards": list(labelled.shard_set.urls)}
    shown = neighbours(subject, pictures.samples, classes, source, own, others, config.num_examples)
    more: dict[str, Any] = {"knn": {**urls, **shown}}
    # A column of labels that was added later does not ask for the text encoder.
    if isinstance(found, Extracted) and (config.labelled_shards or labelled.shard_set.classes):
        labels = labelled.labels.numbers[pictures.samples]
        prompts = Prompts(class_vectors(labelled.labels.classes, config.all_templates(), work.embed_texts), labels)
        subject = replace(subject, prompts=prompts)
        more["zero_shot_labelled"] = urls | zero_shot_labelled(
            pictures, prompts, labelled.labels.classes, config.all_templates(), found.logit_scale, own,
            2 * config.num_examples,
        )  # fmt: skip
    return {"figures": {**figures_of(subject), **results["figures"]}, **more}


def _labelled_set(work: Evaluating, shard_set: ShardSet) -> LabelledSet | None:
    """The labelled shards, or the evaluated ones where they have labels; checked before anything is computed."""
    config, trained_on = work.config, work.encoder.identity["config"].get("data", {})
    own = work.open(config.labelled_shards) if config.labelled_shards else shard_set
    labels = labels_of(own, _column_there(trained_on, own.urls))
    if labels is None or not (labels.numbers >= 0).any():
        if config.labelled_shards or not work.encoder.compares_text:
            raise DataError(
                f"{own.urls[0]}: has no class labels. Build it with the image_folder reader, with labels in its jsonl, "
                "or add them with `shardclip column labels`."
            )
        return None
    urls = config.gallery or tuple(url for url in trained_on.get("train", ()) if exists(join(url, MANIFEST_NAME)))
    if not urls or (not config.gallery and len(urls) < len(trained_on["train"])):
        return LabelledSet(own, labels, None)
    gallery = ShardSet.open(urls, config.cache_dir, text="")
    gallery_labels = labels_of(gallery, _column_there(trained_on, urls))
    if gallery_labels is None and config.gallery:
        raise DataError(f"gallery: {urls[0]} has no class labels. Add them with `shardclip column labels`.")
    return LabelledSet(own, labels, GallerySource.of(gallery, gallery_labels, own) if gallery_labels else None)


def _column_there(trained_on: Mapping[str, Any], urls: Sequence[str]) -> str:
    """The label column of the training recipe, if all of these sets have it."""
    name = (trained_on.get("columns") or {}).get(LABEL, "")
    return label_column({LABEL: name}, urls) if name and all(name in column_names(url) for url in urls) else ""


def _expect_nothing_of_text(config: EvalConfig, encoder: LoadedEncoder) -> None:
    given = {
        "queries": config.queries,
        "classes": config.all_classes(),
        "baseline": config.baseline,
        "captions": config.captions,
        "equal_captions": config.equal_captions,
    }
    for name, value in given.items():
        if value:
            raise ConfigError(
                f"{name}: {encoder.path} was trained without captions, so its pictures cannot be compared with text. "
                f"Leave {name} out."
            )


def _loss(work: Evaluating, extracted: Extracted, shard_set: ShardSet) -> dict[str, Any]:
    encoder, image_ids = work.encoder, answer_ids(shard_set, extracted.samples)
    wanted = work.config.loss_batch_size or int(encoder.identity["config"]["global_batch_size"])
    used = min(wanted, len(extracted.samples))
    value = mean_pair_loss(extracted, image_ids, encoder.objective, encoder.scalars, wanted, work.device)
    return {"value": value, "batch_size": used}


def _identity(work: Evaluating, shard_set: ShardSet, found: Extracted | Pictures, run_dir: Path) -> dict[str, Any]:
    environment, encoder = describe_environment(world_size=1), work.encoder
    return {
        "format_version": FORMAT_VERSION,
        "evaluated": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S"),
        "run": run_dir.parent.name if run_dir.name == "run" else run_dir.name,
        "run_dir": os.path.relpath(run_dir, work.out),  # relative: the folders may move together
        "checkpoint": encoder.path.name,
        "encoder": encoder.fingerprint,
        "embed_dim": pictures_of(found).images.shape[1],
        "text_encoder": encoder.text_name,
        "captions_from": work.captions_from,
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
        "config": to_mapping(work.config),
    }


def _save_pictures(results: dict[str, Any], run_dir: Path, out: Path) -> None:
    folder = out / PICTURES
    charts = result_charts(results, folder)
    if (run_dir / METRICS).exists():
        charts |= training_charts(read_metrics(run_dir / METRICS))
    for name, figure in charts.items():
        save_png(figure, folder / f"{name}.png")
    for name, figure in sheets(results, folder).items():
        save_jpeg(figure, folder / f"{name}.jpg")


def _autocast(precision: str, device: torch.device) -> Callable[[], Any]:
    if precision == "no":
        return nullcontext
    return partial(torch.autocast, device.type, torch.bfloat16 if precision == "bf16" else torch.float16)
