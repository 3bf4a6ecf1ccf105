"""The classes of a validation set as training follows them: by what their names say, embedded as captions are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from core.columns import LABELS, column_names
from core.errors import ConfigError, WeightsError
from core.shard_set import ShardSet
from eval.classes import class_vectors
from eval.encoder import text_embedder, trained_embedder
from eval.evaluations.evaluation import Prompts
from eval.labels import Labels, label_column, labels_of
from trainer.data.names import LABEL
from trainer.models.encoder import Encoder

TEMPLATES = ("a photo of a {}.",)


@dataclass(frozen=True, eq=False)
class NamedClasses:
    """Classes that can be followed by their names.

    `in_captions`: whether the set's own captions were made from these very names.
    """

    labels: Labels
    in_captions: bool


@dataclass(frozen=True, eq=False)
class ClassPrompts:
    """Classes of a validation set whose names can be compared with its pictures.

    Attributes:
        labels: of the set.
        features: `(K, D)` of the classes; None where a text tower is trained, which embeds them anew each time.
    """

    labels: Labels
    features: np.ndarray | None

    def of(self, samples: np.ndarray, encoder: Encoder, device: torch.device) -> Prompts:
        """For pictures of some samples."""
        features = self.features
        if features is None:
            assert encoder.text_encoder is not None
            features = class_vectors(self.labels.classes, TEMPLATES, trained_embedder(encoder.text_encoder, device))
        return Prompts(features, self.labels.numbers[samples])


def named_classes(val_set: ShardSet, columns: Mapping[str, str]) -> NamedClasses | None:
    """The classes of a set's samples, where every set of it has labels and any sample a class; None elsewhere.

    Args:
        columns: `data.columns` of the recipe: the column that it calls label goes before `labels`.

    Raises:
        ShardclipError: labels that cannot be read, or are none of the set's classes.
    """
    urls = val_set.urls
    is_named = all(columns.get(LABEL, "") in column_names(url) for url in urls)
    column = label_column(columns, urls) if is_named else ""
    in_columns = column or all(LABELS in column_names(url) for url in urls)
    if not in_columns and not all(manifest.classes for manifest in val_set.manifests):
        return None
    labels = labels_of(val_set, column)
    if labels is None or not (labels.numbers >= 0).any():
        return None
    return NamedClasses(labels, column in ("", LABELS) and len(val_set.class_captions) == len(urls))


def class_prompts(
    val_set: ShardSet, train_set: ShardSet, named: NamedClasses, is_trained: bool, device: torch.device
) -> ClassPrompts:
    """All classes of a set, by the captions that were made from their names, else by "a photo of a {}.".

    Args:
        train_set: where captions are looked for of classes that no sample of the validation set has.
        is_trained: whether the run trains a text tower, which then embeds the names; otherwise what embedded the set's
            captions does, here and once.

    Raises:
        WeightsError: that encoder is not on this machine, or is another one.
    """
    labels = named.labels
    if is_trained:
        return ClassPrompts(labels, None)
    if named.in_captions and (features := _by_own_captions(val_set, train_set, labels.classes)) is not None:
        return ClassPrompts(labels, features)
    spec = val_set.text_encoder
    assert spec is not None, "the run compares captions"
    try:
        embed = text_embedder(spec, None, device)
    except ConfigError as error:
        raise WeightsError(f"{spec} cannot be loaded to embed class names: {error}") from None
    return ClassPrompts(labels, class_vectors(labels.classes, TEMPLATES, embed))


def _by_own_captions(val_set: ShardSet, train_set: ShardSet, classes: tuple[str, ...]) -> np.ndarray | None:
    """`(K, D)` by the embeddings that any sample of a class has, without an encoder; None where a class has none."""
    captions = {**_captions_of_classes(train_set), **_captions_of_classes(val_set)}
    if not captions.keys() >= set(classes):
        return None
    found = [shard_set.embeddings(sample) for shard_set, sample in (captions[name] for name in classes)]
    means = np.stack([embeddings.astype(np.float32).mean(axis=0) for embeddings in found])
    features: np.ndarray = means / np.linalg.norm(means, axis=1, keepdims=True)
    return features


def _captions_of_classes(shard_set: ShardSet) -> dict[str, tuple[ShardSet, int]]:
    """Class -> the first sample whose captions were made from its name."""
    found: dict[str, tuple[ShardSet, int]] = {}
    starts = np.cumsum(shard_set.set_sizes) - shard_set.set_sizes
    for number, labels in shard_set.class_captions.items():
        for place, row in zip(*np.unique(labels.all_rows(), return_index=True), strict=True):
            if place >= 0:
                found.setdefault(labels.classes[place], (shard_set, int(starts[number] + row)))
    return found
