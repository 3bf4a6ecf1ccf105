"""Evaluate a checkpoint: `shardclip eval configs/eval/flickr8k_sample.yaml`; numbers, pictures and one report."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from core.class_captions import answer_ids
from core.config import dump_yaml, to_mapping
from core.distributed import on_main, world_size
from core.errors import ConfigError
from core.host_memory import keep_freed_memory
from core.shard_set import ShardSet
from core.storage import publish_bytes
from eval.baseline import gains_over, save_of_each, save_ranks
from eval.captions_file import read_captions
from eval.classes import neighbours, zero_shot, zero_shot_labelled
from eval.config import EvalConfig
from eval.early import FEATURES, MARK, OF_EACH, RANKS, RESULTS, expect_place, place_of
from eval.encoder import ReadyEncoder, chosen_device
from eval.evaluating import Evaluating, LabelledSet, encoder_of, labelled_set, pictures_of
from eval.evaluations import ALWAYS, EVALUATIONS, chosen, expect_all, figures_of, measure_all
from eval.evaluations.evaluation import Evaluation, Subject
from eval.evaluations.retrieval import evaluate_retrieval, recall_intervals
from eval.features import Extracted, Pictures, has_pair_loss, mean_pair_loss, save_features, shards_stamp
from eval.known import known_of
from eval.metrics import FeatureSet, Ranks
from eval.ranks import retrieval_ranks
from eval.report.charts import result_charts, sheets, training_charts
from eval.report.drawing.style import save_jpeg, save_png
from eval.report.exhibits import Shelf, rank_bands, show_queries, show_retrieval, show_similarity
from eval.report.measured import as_json, files_of, keep_files, part_of
from eval.report.page import PICTURES, write_report
from eval.report.say import say_results
from eval.subjects import by_weights, expect_other_weights, subject_of, with_classes, with_prompts, with_text
from trainer.run.environment import describe_environment, hardware
from trainer.trackers.metrics_csv import METRICS, read_metrics

FORMAT_VERSION = 1
_LACKING = {  # of a need: why it is not known
    "text": "needs captions, which this encoder was not trained to compare.",
    "words": "needs a text encoder, and this encoder was trained without captions.",
    "labels": "needs class labels: name labelled_shards, or add them with `shardclip column labels`.",
    "prompts": "needs labelled shards and an encoder that compares captions.",
}


def evaluate(config: EvalConfig, console: Console) -> dict[str, Any]:
    """Measure, write `results.json`, pictures and `report.html` into the output folder, and say the figures.

    Collective: of several processes each takes its share, and the first one writes and speaks.

    Returns:
        What `results.json` holds; recalls and accuracies are shares from 0 to 1.

    Raises:
        ConfigError: there is nothing to measure, or text is asked for and the checkpoint compares none.
    """
    started = time.monotonic()
    device = chosen_device(config.device)
    if device.type == "cpu":
        keep_freed_memory()
    encoder = encoder_of(config, device)
    expect_place(config, encoder.run_dir)
    out = place_of(config, encoder.run_dir)
    console.print(f"evaluating {encoder.known_as} on {', '.join(config.shards)} -> {out}", markup=False)
    if not encoder.compares_text:
        _expect_nothing_of_text(config, encoder)
    work = Evaluating(config, encoder, out, device, console)
    shard_set = work.open(config.shards)
    labelled = labelled_set(work, shard_set)
    own_captions = read_captions(config.captions, shard_set) if config.captions else None
    evaluations = _expect_measurable(work, shard_set, labelled, own_captions)
    expect_other_weights(evaluations, work)

    found = work.extract(shard_set, own_captions)
    on_main(lambda: _save_extracted(work, shard_set, found))
    results: dict[str, Any] = _identity(work, shard_set, found)
    subject = subject_of(work, shard_set, found, work.shelf(shard_set, "sample", own_captions))
    if isinstance(found, Extracted):
        subject = with_text(subject, found, work)
        assert subject.ranks is not None
        results |= _of_text(work, shard_set, found, subject.ranks, own_captions)
    others = by_weights(subject, work, shard_set, None, own_captions)
    subjects = [(config.shards, replace(subject, by_weights=others))]
    if labelled:
        is_whole = labelled.shard_set is shard_set and own_captions is None  # not only the pictures of a captions file
        own = found if is_whole else work.extract(labelled.shard_set)
        classified, shown = _of_classes(work, labelled, own, subject if is_whole else None)
        others = by_weights(classified, work, labelled.shard_set, labelled, None)
        classified = replace(classified, by_weights=others)
        if is_whole:
            subjects.clear()  # it knows all that was known before
        subjects.append((labelled.shard_set.urls, classified))
        results |= shown
    measured, files, of_each = _measured(evaluations, subjects)
    lacking = {choice.name for choice in config.evaluations} - measured["evaluations"].keys() - set(ALWAYS)
    assert not lacking, f"{lacking} were found to be measurable"
    results |= measured

    results["seconds"] = round(time.monotonic() - started, 1)

    def write() -> None:
        keep_files(files, out)
        save_of_each(of_each, out / OF_EACH)
        publish_bytes(as_json(results), out / RESULTS)
        _save_pictures(results, encoder.run_dir, out)
        say_results(results, write_report(out), console)

    on_main(write)
    return results


def _save_extracted(work: Evaluating, shard_set: ShardSet, found: Extracted | Pictures) -> None:
    """Before anything is measured: what fails later leaves the features."""
    publish_bytes(dump_yaml(work.config).encode(), work.out / MARK)  # the folder is ours from now on
    stamp = shards_stamp(shard_set.fingerprint, work.captions_from)
    save_features(found, work.out / FEATURES, work.encoder.fingerprint, stamp)


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
    on_main(lambda: save_ranks(ranks, features, work.out / RANKS, work.captions_from))
    return results


def _of_classes(
    work: Evaluating, labelled: LabelledSet, found: Extracted | Pictures, subject: Subject | None
) -> tuple[Subject, dict[str, Any]]:
    """What is known of a labelled set, and what is shown of its neighbours and, where there is text, its prompts.

    Args:
        found: its features.
        subject: what is known of it already.
    """
    pictures, source, config = pictures_of(found), labelled.gallery, work.config
    own = work.shelf(labelled.shard_set, "labelled")
    subject = with_classes(subject or subject_of(work, labelled.shard_set, found, own), labelled, work)
    others = work.shelf(source.shard_set, "gallery") if source else own
    urls = {"shards": list(labelled.shard_set.urls), "fingerprint": labelled.shard_set.fingerprint}
    shown = neighbours(subject, pictures.samples, subject.classes, source, own, others, config.num_examples)
    more: dict[str, Any] = {"knn": {**urls, **shown}}
    # A column of labels that was added later does not ask for the text encoder.
    if isinstance(found, Extracted) and (config.labelled_shards or labelled.shard_set.classes):
        subject = with_prompts(subject, labelled, work)
        assert subject.prompts is not None
        more["zero_shot_labelled"] = urls | zero_shot_labelled(
            pictures, subject.prompts, labelled.labels.classes, config.all_templates(), found.logit_scale, own,
            2 * config.num_examples,
        )  # fmt: skip
    return subject, more


def _measured(
    evaluations: Mapping[str, Evaluation], subjects: Sequence[tuple[Sequence[str], Subject]]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, np.ndarray]]:
    """Figures of all sets with their intervals, and what evaluations that have a section show of each.

    Where an evaluation is measured on two sets, the flat figures are those of the first; its parts hold both. Of two
    subjects of one set (captions of a file, and all labelled pictures) the first is measured where it can be.

    Returns:
        A part of the results, the evaluations' own files by name, and figures of each picture or caption.
    """
    figures: dict[str, float] = {}
    intervals: dict[str, Any] = {}
    parts: dict[str, list[Any]] = {}
    files: dict[str, Any] = {}
    of_each: dict[str, np.ndarray] = {}
    done: set[tuple[str, tuple[str, ...]]] = set()
    for urls, subject in subjects:
        wanted = {name: evaluation for name, evaluation in evaluations.items() if (name, tuple(urls)) not in done}
        measured = measure_all(wanted, subject)
        done |= {(name, tuple(urls)) for name in measured}
        files |= files_of(measured, {name: len(found) for name, found in parts.items()})
        figures = {**figures_of(measured), **figures}
        for name, found in measured.items():
            part = part_of(found)
            intervals = {**part["intervals"], **intervals}
            of_each = {**found.of_each, **of_each}
            if evaluations[name].title:
                parts.setdefault(name, []).append({"shards": list(urls), **part})
    knows = sorted({need for _, subject in subjects for need in subject.knows})
    return {"figures": figures, "figure_intervals": intervals, "evaluations": parts, "knows": knows}, files, of_each


def _expect_measurable(
    work: Evaluating, shard_set: ShardSet, labelled: LabelledSet | None, captions: Mapping[int, list[str]] | None
) -> dict[str, Evaluation]:
    """The evaluations, each of which can be measured if the recipe lists it; before anything is computed.

    Raises:
        ConfigError: one cannot.
        DataError: a set is too small for it.
    """
    compares_text, config = work.encoder.compares_text, work.config
    known = {
        "text": compares_text,
        "words": compares_text,
        "labels": labelled is not None,
        "prompts": compares_text and labelled and (config.labelled_shards or labelled.shard_set.classes),
        "pictures": True,
        "weights": True,
        "shelf": True,
    }
    for choice in config.evaluations:
        for need in EVALUATIONS[choice.name].needs:
            if not known[need]:
                raise ConfigError(f"evaluations: '{choice.name}' {_LACKING[need]} Leave it out.")
    evaluations = chosen(config.evaluations)
    is_whole = labelled is not None and labelled.shard_set is shard_set and captions is None
    of_classes = (labelled.labels, labelled.gallery) if labelled and is_whole else ()
    shelf = work.shelf(shard_set, "sample", captions)
    expect_all(
        evaluations, known_of(shard_set, *of_classes, compares_text=compares_text, captions=captions, shelf=shelf)
    )
    if labelled and not is_whole:
        expect_all(evaluations, known_of(labelled.shard_set, labelled.labels, labelled.gallery, compares_text=False))
    return evaluations


def _expect_nothing_of_text(config: EvalConfig, encoder: ReadyEncoder) -> None:
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
                f"{name}: {encoder.known_as} was trained without captions, so its pictures cannot be compared with "
                f"text. Leave {name} out."
            )


def _loss(work: Evaluating, extracted: Extracted, shard_set: ShardSet) -> dict[str, Any]:
    encoder, image_ids = work.encoder, answer_ids(shard_set, extracted.samples)
    wanted = work.config.loss_batch_size or int(encoder.identity["config"]["global_batch_size"])
    used = min(wanted, len(extracted.samples))
    value = mean_pair_loss(extracted, image_ids, encoder.objective, encoder.scalars, wanted, work.device)
    return {"value": value, "batch_size": used}


def _identity(work: Evaluating, shard_set: ShardSet, found: Extracted | Pictures) -> dict[str, Any]:
    environment, encoder = describe_environment(world_size()), work.encoder
    run_dir = encoder.run_dir or work.out
    return {
        "format_version": FORMAT_VERSION,
        "evaluated": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S"),
        "run": _title(encoder),
        "run_dir": os.path.relpath(run_dir, work.out),  # relative: the folders may move together
        "checkpoint": encoder.name,
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


def _title(encoder: ReadyEncoder) -> str:
    if encoder.run_dir is None:
        return encoder.name
    return encoder.run_dir.parent.name if encoder.run_dir.name == "run" else encoder.run_dir.name


def _save_pictures(results: dict[str, Any], run_dir: Path | None, out: Path) -> None:
    folder = out / PICTURES
    charts = result_charts(results, folder)
    if run_dir and (run_dir / METRICS).exists():
        charts |= training_charts(read_metrics(run_dir / METRICS))
    for name, figure in charts.items():
        save_png(figure, folder / f"{name}.png")
    for name, figure in sheets(results, folder).items():
        save_jpeg(figure, folder / f"{name}.jpg")
