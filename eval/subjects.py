"""What is known of a set by a checkpoint's weights, and of the same set by others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache

import numpy as np

from core.errors import ConfigError
from core.shard_set import ShardSet
from eval.classes import class_vectors
from eval.evaluating import Evaluating, LabelledSet, pictures_of
from eval.evaluations.evaluation import Evaluation, OtherWeights, Prompts, Shelf, Subject
from eval.features import Extracted, Pictures
from eval.gallery import joint_classes
from eval.ranks import retrieval_ranks
from eval.topics import topics_of


def subject_of(work: Evaluating, shard_set: ShardSet, found: Extracted | Pictures, shelf: Shelf | None) -> Subject:
    """What is known of any set, once its features are."""
    pictures = pictures_of(found)
    return Subject(
        pictures.images,
        samples=pictures.samples,
        logit_scale=work.encoder.logit_scale,
        words=(lambda texts: work.embed_texts(texts)) if work.encoder.compares_text else None,
        encode=lambda change: work.encode(shard_set, pictures.samples, change),
        shelf=shelf,
        topics=lambda: topics_of(shard_set),
        device=str(work.device),
        say=work.console.print,
    )


def with_text(subject: Subject, found: Extracted, work: Evaluating) -> Subject:
    """And of its captions."""
    ranks = retrieval_ranks(found.features, work.device)
    return replace(subject, pairs=found.features, captions=found.captions, ranks=ranks)


def with_classes(subject: Subject, labelled: LabelledSet, work: Evaluating) -> Subject:
    """And of its classes, beside those of its gallery."""
    source = labelled.gallery
    classes = joint_classes(labelled.labels, source)
    shelf = work.shelf(source.shard_set, "gallery") if source else None
    gallery = source.gallery(work.extract_gallery(source), classes, shelf) if source else None
    labels = labelled.labels.among(classes)[subject.samples]
    return replace(subject, labels=labels, classes=classes, gallery=gallery)


def with_prompts(subject: Subject, labelled: LabelledSet, work: Evaluating) -> Subject:
    """And of what the names of its classes say."""
    vectors = class_vectors(labelled.labels.classes, work.config.all_templates(), work.embed_texts)
    return replace(subject, prompts=Prompts(vectors, labelled.labels.numbers[subject.samples]))


def by_weights(
    subject: Subject,
    work: Evaluating,
    shard_set: ShardSet,
    labelled: LabelledSet | None,
    captions: Mapping[int, list[str]] | None,
) -> Callable[[OtherWeights], Subject]:
    """Makes, for other weights, what is known of the same pictures by them; once for each.

    Args:
        subject: by the checkpoint's own weights; what it knows, it will be known by others, too.
        labelled: where classes are known.
        captions: by sample number, in place of the set's own.
    """

    @cache
    def by(weights: OtherWeights) -> Subject:
        other = work.by(weights)
        found = other.extract(other.open(shard_set.urls), captions)
        theirs = subject_of(other, shard_set, found, subject.shelf)
        assert np.array_equal(theirs.samples, subject.samples), "the same pictures"
        if subject.pairs is not None and isinstance(found, Extracted):
            theirs = with_text(theirs, found, other)
        if labelled is not None and subject.labels is not None:
            theirs = with_classes(theirs, labelled, other)
        if labelled is not None and subject.prompts is not None and other.encoder.compares_text:
            theirs = with_prompts(theirs, labelled, other)
        return theirs

    return by


def expect_other_weights(evaluations: Mapping[str, Evaluation], work: Evaluating) -> None:
    """Raise, before anything is computed, where weights that an evaluation compares with cannot be had.

    Raises:
        ConfigError, CheckpointError, WeightsError: in one sentence.
    """
    for name, evaluation in evaluations.items():
        for weights in evaluation.other_weights():
            other = work.by(weights)
            if "text" in evaluation.needs and not other.encoder.compares_text:
                raise ConfigError(
                    f"evaluations: '{name}' compares captions, and {weights} was trained without. Name another run, or "
                    "leave it out."
                )
