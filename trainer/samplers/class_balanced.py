"""Batches of a few classes with equally many samples each, as SupCon, triplet and prototype objectives want them."""

from __future__ import annotations

import numpy as np

from core.errors import ConfigError
from trainer.samplers.epoch import Cycle, Epoch


def class_balanced(epoch: Epoch, num_classes: int, num_per_class: int, column: str = "labels") -> np.ndarray:
    """`num_classes` different classes in every global batch, `num_per_class` samples of each.

    Over an epoch all classes come equally often, and so do the samples within a class, to within one. Samples without
    a label never come. Small classes' samples come more often than once: each time another picture (`draws_of`).

    Args:
        num_classes: times `num_per_class` it is the global batch size.
        num_per_class: samples of each.
        column: of the labels.

    Raises:
        ConfigError: the batch is not that size, or there are fewer classes.
    """
    wanted = num_classes * num_per_class
    if num_classes < 1 or num_per_class < 1 or wanted != epoch.global_batch_size:
        raise ConfigError(
            f"data.sampler class_balanced: {num_classes} classes x {num_per_class} samples are {wanted}, "
            f"global_batch_size is {epoch.global_batch_size}. Make them equal."
        )
    labels = epoch.column(column)
    members = [np.flatnonzero(labels == label) for label in np.unique(labels[labels >= 0])]
    if len(members) < num_classes:
        raise ConfigError(
            f"data.sampler class_balanced: num_classes is {num_classes}, only {len(members)} classes have samples. "
            f"Set it to at most {len(members)}."
        )
    classes = Cycle(epoch, len(members), "classes")
    within = [Cycle(epoch, len(own), "class", number) for number, own in enumerate(members)]
    batches = []
    for step in range(epoch.steps):
        chosen = classes.take(num_classes)
        batch = np.concatenate([members[c][within[c].take(num_per_class)] for c in chosen])
        batches.append(epoch.shuffled(batch, step))
    return np.concatenate(batches)
