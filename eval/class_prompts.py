"""The classes of a validation set as training follows them: by what their names say, embedded as captions are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from core.errors import ConfigError, WeightsError
from core.shard_set import ShardSet
from eval.classes import class_vectors
from eval.encoder import text_embedder, trained_embedder
from eval.evaluations.evaluation import Prompts
from eval.labels import Labels
from trainer.models.encoder import Encoder

TEMPLATES = ("a photo of a {}.",)


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


def class_prompts(val_set: ShardSet, labels: Labels, is_trained: bool, device: torch.device) -> ClassPrompts:
    """The classes of a set, by the captions that were made from their names, else by "a photo of a {}.".

    Args:
        is_trained: whether the run trains a text tower, which then embeds the names; otherwise what embedded the set's
            captions does, here and once.

    Raises:
        WeightsError: that encoder is not on this machine, or is another one.
    """
    if is_trained:
        return ClassPrompts(labels, None)
    if len(val_set.class_captions) == len(val_set.urls):
        return _by_own_captions(val_set, labels)
    spec = val_set.text_encoder
    assert spec is not None, "the run compares captions"
    try:
        embed = text_embedder(spec, None, device)
    except ConfigError as error:
        raise WeightsError(f"{spec} cannot be loaded to embed class names: {error}") from None
    return ClassPrompts(labels, class_vectors(labels.classes, TEMPLATES, embed))


def _by_own_captions(val_set: ShardSet, labels: Labels) -> ClassPrompts:
    """By the embeddings that any sample of a class has, without an encoder; classes without samples take no part."""
    numbers, first = np.unique(labels.numbers, return_index=True)
    numbers, first = numbers[numbers >= 0], first[numbers >= 0]
    means = np.stack([val_set.embeddings(int(sample)).astype(np.float32).mean(axis=0) for sample in first])
    classes = tuple(labels.classes[number] for number in numbers)
    place = np.full(len(labels.classes) + 1, -1)  # the last entry: of samples without a class
    place[numbers] = np.arange(len(numbers))
    features = means / np.linalg.norm(means, axis=1, keepdims=True)
    return ClassPrompts(Labels(place[labels.numbers], classes), features)
