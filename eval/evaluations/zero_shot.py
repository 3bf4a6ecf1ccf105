"""Zero-shot classification: class names become captions through templates, images go to the nearest class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from core.errors import ConfigError, DataError
from eval.evaluations.evaluation import EmbedTexts, Evaluation, Measured, Need, Subject
from eval.metrics import mean_over_classes, share_interval
from eval.spread import spread
from trainer.telemetry import names

_BLOCK_BYTES = 32 * 2**20  # of the similarities of some pictures with all classes, and of what is made of them


@dataclass(frozen=True)
class ZeroShot(Evaluation):
    """The class of a picture by what the names of classes say, as captions."""

    needs: ClassVar[tuple[Need, ...]] = ("prompts",)

    def figures(self) -> tuple[str, ...]:
        """Accuracy over pictures, the same by the five nearest classes, and the mean over classes."""
        return (names.ZERO_SHOT, names.ZERO_SHOT_TOP5, names.ZERO_SHOT_BY_CLASS)

    def measure(self, subject: Subject) -> Measured:
        """Of the pictures that have a class.

        Raises:
            DataError: none has.
        """
        assert subject.prompts is not None
        has_class = with_a_class(subject.prompts.labels, "zero_shot")
        labels = subject.prompts.labels[has_class]
        rank = rank_classes(subject.images, np.flatnonzero(has_class), subject.prompts.features, labels)
        top1, top5 = share_interval(rank == 1), share_interval(rank <= 5)
        by_class, interval = mean_over_classes(rank == 1, labels)
        intervals = {names.ZERO_SHOT: top1, names.ZERO_SHOT_TOP5: top5}
        if interval:
            intervals[names.ZERO_SHOT_BY_CLASS] = interval
        figures = {
            names.ZERO_SHOT: top1.estimate,
            names.ZERO_SHOT_TOP5: top5.estimate,
            names.ZERO_SHOT_BY_CLASS: by_class,
        }
        return Measured(figures, intervals, of_each={names.ZERO_SHOT: rank == 1})


def with_a_class(labels: np.ndarray, evaluation: str) -> np.ndarray:
    """`(N,)` bool: which pictures have one of the classes `(N,)`, -1 being none.

    Raises:
        DataError: none has; the sentence begins with `evaluation`.
    """
    has_class: np.ndarray = labels >= 0
    if not has_class.any():
        raise DataError(
            f"{evaluation}: none of {len(labels)} pictures has a class. Label some (`shardclip column labels`)."
        )
    return has_class


def read_lines(path: Path) -> tuple[str, ...]:
    """A prompt file: one class or template per line; blank lines and lines that open with # are passed over."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such file of classes or templates. Ours lie in configs/prompts/.")
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return tuple(line for line in lines if line and not line.startswith("#"))


def check_templates(templates: Sequence[str]) -> None:
    """Raise where a template has no single place for the class name."""
    if not templates:
        raise ConfigError("templates: none given. Use 'a photo of a {}.' or a file of configs/prompts/.")
    for template in templates:
        if template.count("{}") != 1:
            raise ConfigError(
                f"templates: '{template}' needs exactly one {{}} for the class, as in 'a photo of a {{}}.'"
            )


def spoken_class(name: str) -> str:
    """A folder's name as words: `grand_piano` -> `grand piano`."""
    return " ".join(name.replace("_", " ").replace("-", " ").split())


def class_features(classes: Sequence[str], templates: Sequence[str], embed_texts: EmbedTexts) -> np.ndarray:
    """`(K, D)` per class the mean of its prompts' embeddings, of unit length (CLIP: Radford 2021, section 3.1.4)."""
    prompts = [template.replace("{}", name) for name in classes for template in templates]
    embeddings = embed_texts(prompts).astype(np.float32).reshape(len(classes), len(templates), -1)
    mean = embeddings.mean(axis=1)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def class_probabilities(image_features: np.ndarray, features_of_class: np.ndarray, logit_scale: float) -> np.ndarray:
    """`(N, K)` softmax over the classes, at the temperature that the model learned."""
    logits = logit_scale * (image_features @ features_of_class.T)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def in_blocks(num_rows: int, num_classes: int, work: Callable[[slice], np.ndarray]) -> np.ndarray:
    """`(num_rows, ...)` of what `work` gives for each block of pictures, dealt out over the ranks (collective).

    No rank holds a number for every picture and class: of 1.28 million pictures and 1,000 classes they are 5 GB.
    """
    return spread(num_rows, max(1, _BLOCK_BYTES // (8 * num_classes)), work)


def rank_classes(images: np.ndarray, rows: np.ndarray, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """`(n,)` rank of the right class, as `class_ranks`, of some pictures (collective).

    Args:
        images: `(N, D)`.
        rows: `(n,)` which of them are ranked.
        features: `(K, D)` of the classes.
        labels: `(n,)` the right class of each.
    """
    return in_blocks(len(rows), len(features), lambda part: class_ranks(images[rows[part]] @ features.T, labels[part]))


def class_ranks(similarity: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """`(N,)` rank from 1 of the right class by `similarity` `(N, K)`; classes that tie with it stand before it."""
    own = similarity[np.arange(len(labels)), labels]
    ranks: np.ndarray = (similarity >= own[:, None]).sum(axis=1)  # its own class is always counted
    return ranks


def score_labels(images: np.ndarray, rows: np.ndarray, features: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Accuracy of some pictures, given as for `rank_classes`; ties count against the model (collective).

    Returns:
        `top1`, `top5` (shares), `per_class` (top-1 share of each class, None for a class without images),
        `mean_per_class` and `confusion` `(K, K)`: row = right class, column = predicted class, counts.
    """

    def judge(part: slice) -> np.ndarray:
        similarity = images[rows[part]] @ features.T
        rank = class_ranks(similarity, labels[part])
        return np.stack([rank, _predicted(similarity, labels[part], rank)], axis=1)

    num_classes = len(features)
    rank, predicted = in_blocks(len(rows), num_classes, judge).T
    counts, num_right = (np.bincount(of, minlength=num_classes) for of in (labels, labels[rank == 1]))
    per_class = [float(right / count) if count else None for right, count in zip(num_right, counts, strict=True)]
    confusion = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return {
        "num_images": len(rows),
        "top1": float(np.mean(rank == 1)),
        "top5": float(np.mean(rank <= 5)),
        "mean_per_class": float(np.mean([share for share in per_class if share is not None])),
        "per_class": per_class,
        "confusion": confusion.reshape(num_classes, num_classes).tolist(),
    }


def _predicted(similarity: np.ndarray, labels: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """The best class, which for an image that only ties is the other one: the diagonal agrees with top-1."""
    similarity[np.arange(len(labels)), labels] = -np.inf
    return np.where(rank == 1, labels, similarity.argmax(axis=1))
