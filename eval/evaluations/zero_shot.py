"""Zero-shot classification: class names become captions through templates, images go to the nearest class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from core.errors import ConfigError, DataError
from eval.evaluations.evaluation import EmbedTexts, Evaluation, Measured, Need, Subject
from eval.metrics import mean_over_classes, share_interval
from trainer.telemetry import names


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
        rank = class_ranks(subject.images[has_class] @ subject.prompts.features.T, labels)
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


def class_ranks(similarity: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """`(N,)` rank from 1 of the right class by `similarity` `(N, K)`; classes that tie with it stand before it."""
    own = similarity[np.arange(len(labels)), labels]
    ranks: np.ndarray = (similarity >= own[:, None]).sum(axis=1)  # its own class is always counted
    return ranks


def score_labels(similarity: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Accuracy of `similarity` `(N, K)` against the right classes `(N,)`; ties count against the model.

    Returns:
        `top1`, `top5` (shares), `per_class` (top-1 share of each class, None for a class without images),
        `mean_per_class` and `confusion` `(K, K)`: row = right class, column = predicted class, counts.
    """
    num_images, num_classes = similarity.shape
    rank = class_ranks(similarity, labels)
    per_class = [float(np.mean(rank[labels == k] == 1)) if (labels == k).any() else None for k in range(num_classes)]
    confusion = np.zeros((num_classes, num_classes), dtype=np.int64)
    np.add.at(confusion, (labels, _predicted(similarity, labels, rank)), 1)
    return {
        "num_images": num_images,
        "top1": float(np.mean(rank == 1)),
        "top5": float(np.mean(rank <= 5)),
        "mean_per_class": float(np.mean([share for share in per_class if share is not None])),
        "per_class": per_class,
        "confusion": confusion.tolist(),
    }


def _predicted(similarity: np.ndarray, labels: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """The best class, which for an image that only ties is the other one: the diagonal agrees with top-1."""
    others = similarity.copy()
    others[np.arange(len(labels)), labels] = -np.inf
    return np.where(rank == 1, labels, others.argmax(axis=1))
