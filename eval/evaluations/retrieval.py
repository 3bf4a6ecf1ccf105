"""Retrieval in both directions: named protocols, intervals, and what a query finds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from core.errors import ConfigError, DataError, did_you_mean
from eval.evaluations.evaluation import Evaluation, Measured, Need, Subject
from eval.metrics import FeatureSet, Ranks, share_interval, summarise
from trainer.telemetry import names
from trainer.telemetry.names import DIRECTIONS, RECALL_KS

if TYPE_CHECKING:
    from eval.features import Extracted

_FIGURES = (*(names.recall(k) for k in RECALL_KS), names.MEDIAN_RANK, names.MEAN_RANK, names.MEAN_AP)
_ALSO_RIGHT = "a caption is right for every image that it fits"
COCO_IMAGES, COCO_FOLDS, COCO_CAPTIONS = 5000, 5, 5
FLICKR8K_IMAGES, FLICKR8K_CAPTIONS = 1000, 5


@dataclass(frozen=True)
class Retrieval(Evaluation):
    """Images found by captions and captions by images, among all of the set."""

    needs: ClassVar[tuple[Need, ...]] = ("text",)

    def figures(self) -> tuple[str, ...]:
        """Recall, ranks and mAP of both directions."""
        return tuple(names.of_direction(d, figure) for d in DIRECTIONS for figure in _FIGURES)

    def measure(self, subject: Subject) -> Measured:
        """From the ranks that are counted already."""
        assert subject.ranks is not None
        found, ranks = summarise(subject.ranks), subject.ranks
        precisions = dict(zip(DIRECTIONS, (ranks.average_precision, ranks.text_average_precision), strict=True))
        return Measured(
            {names.of_direction(d, f): value for d in DIRECTIONS for f, value in found[d].items()},
            of_each={names.of_direction(d, names.MEAN_AP): values for d, values in precisions.items()},
        )


def full_gallery(features: FeatureSet) -> tuple[str, list[FeatureSet]]:
    """Every image and every caption at once; a protocol of its own where more than an image's captions are right."""
    return _size(features, features.right.kind or "full gallery"), [features]


def coco_5k(features: FeatureSet) -> tuple[str, list[FeatureSet]]:
    """The first 5,000 images with their first five captions, at once (Karpathy's test split holds exactly those)."""
    gallery = _first_coco_images(features, "coco-5k")
    return _size(gallery, "COCO 5k"), [gallery]


def coco_1k_5fold(features: FeatureSet) -> tuple[str, list[FeatureSet]]:
    """Mean over five galleries of 1,000 successive images with their first five captions, as VSE++ reports it."""
    images = np.arange(len(_first_coco_images(features, "coco-1k-5fold").images))
    folds = [features.select(fold, COCO_CAPTIONS) for fold in np.split(images, COCO_FOLDS)]
    return _size(folds[0], f"COCO 1k, mean of {COCO_FOLDS} folds, each"), folds


def flickr8k_1k(features: FeatureSet) -> tuple[str, list[FeatureSet]]:
    """Flickr8k's test split as it is published: 1,000 images with five captions each, and no others."""
    _expect_own_captions(features, "flickr8k-1k")
    if len(features.images) != FLICKR8K_IMAGES or (features.captions_per_image() != FLICKR8K_CAPTIONS).any():
        raise DataError(
            f"Protocol 'flickr8k-1k' needs {FLICKR8K_IMAGES:,} images with {FLICKR8K_CAPTIONS} captions each, the set "
            f"has {len(features.images):,} with {len(features.texts):,} in all. Build configs/build/flickr8k_test.yaml "
            "or use protocols: full."
        )
    return _size(features, "Flickr8k 1k"), [features]


PROTOCOLS: dict[str, Callable[[FeatureSet], tuple[str, list[FeatureSet]]]] = {
    "full": full_gallery,
    "coco-5k": coco_5k,
    "coco-1k-5fold": coco_1k_5fold,
    "flickr8k-1k": flickr8k_1k,
}


def evaluate_retrieval(
    features: FeatureSet, count_ranks: Callable[[FeatureSet], Ranks], protocol: str = "full", captions_from: str = ""
) -> dict[str, Any]:
    """Recall@1/5/10 and mAP@10 (0 to 1), median and mean rank (from 1) of both directions, and the protocol in words.

    Args:
        count_ranks: of each gallery of the protocol (`eval.ranks.retrieval_ranks`).
        captions_from: the file that captions are from; "": the set itself.

    Returns:
        `{"image_to_text": {...}, "text_to_image": {...}, "protocol": "full gallery: 300 images x 1,500 captions"}`.
    """
    if protocol not in PROTOCOLS:
        raise ConfigError(f"protocols: unknown protocol '{protocol}'.{did_you_mean(protocol, PROTOCOLS)}")
    name, galleries = PROTOCOLS[protocol](features)
    summaries = [summarise(count_ranks(gallery)) for gallery in galleries]
    result: dict[str, Any] = {
        direction: {
            figure: float(np.mean([summary[direction][figure] for summary in summaries]))
            for figure in summaries[0][direction]
        }
        for direction in DIRECTIONS
    }
    captions = f", captions of {captions_from}" if captions_from else ""
    result["protocol"] = name + captions + _clipped(galleries[0])
    return result


def recall_intervals(features: FeatureSet, ranks: Ranks, level: float = 0.95) -> dict[str, Any]:
    """Intervals of every recall, captions drawn by `text_groups`: `{"text_to_image": {"10": ...}}`."""
    return {
        direction: {str(k): asdict(share_interval(direction_ranks <= k, groups, level=level)) for k in RECALL_KS}
        for direction, direction_ranks, groups in (
            ("image_to_text", ranks.image_to_text, None),
            ("text_to_image", ranks.text_to_image, features.text_groups),
        )
    }


def best_rows(queries: np.ndarray, gallery: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of `gallery` `(R, D)` nearest to each of `queries` `(Q, D)`, best first, and their cosines: `(Q, k)`."""
    similarity = queries.astype(np.float32) @ gallery.T
    rows = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    return rows, np.take_along_axis(similarity, rows, axis=1)


def caption_examples(
    extracted: Extracted, ranks: Ranks, count: int, k: int, text_of: Callable[[int], str], seed: int = 0
) -> list[dict[str, Any]]:
    """Distinct captions drawn at random, one per image, with the `k` images found for each; right are all that it fits.

    Args:
        count: of captions; fewer where fewer are distinct, as where they were made from the names of a few classes.
        text_of: the text of a row of the features' captions.
    """
    features = extracted.features
    images = np.random.default_rng((seed, 0)).permutation(len(features.images))
    first_text = np.unique(features.image_of_text, return_index=True)[1]
    texts = list(islice(_distinct(first_text[images], text_of), count))
    rows, scores = best_rows(features.texts[texts], features.images, k)
    return [
        {
            "text": _place(extracted.captions[text]),
            "rank": int(ranks.text_to_image[text]),
            "answers": [
                {"sample": int(extracted.samples[row]), "score": float(score), "is_right": bool(is_right)}
                for row, score, is_right in zip(
                    rows[i], scores[i], features.right.are_right(rows[i], text), strict=True
                )
            ],
        }
        for i, text in enumerate(texts)
    ]


def image_examples(
    extracted: Extracted, ranks: Ranks, count: int, k: int, text_of: Callable[[int], str], seed: int = 0
) -> list[dict[str, Any]]:
    """Images drawn at random, with the `k` distinct captions found for each; right are all that fit.

    Captions that are equal letter for letter are one, with the best score among them; it is right where any is.

    Args:
        text_of: the text of a row of the features' captions.
    """
    features = extracted.features
    images = np.random.default_rng((seed, 1)).permutation(len(features.images))[:count]
    every_text = np.arange(len(features.texts))
    examples = []
    for image in images:
        scores = features.texts @ features.images[image]
        right = {text_of(row) for row in np.flatnonzero(features.right.are_right(image, every_text)).tolist()}
        found = islice(_distinct(np.argsort(-scores, kind="stable"), text_of), k)
        answers = [
            {"text": _place(extracted.captions[row]), "score": float(scores[row]), "is_right": text_of(row) in right}
            for row in found
        ]
        sample, rank = int(extracted.samples[image]), int(ranks.image_to_text[image])
        examples.append({"sample": sample, "rank": rank, "answers": answers})
    return examples


def _distinct(rows: np.ndarray, text_of: Callable[[int], str]) -> Iterator[int]:
    """Those of the rows whose text has not come yet."""
    said: set[str] = set()
    for row in rows.tolist():
        if (text := text_of(row)) not in said:
            said.add(text)
            yield row


def query_answers(extracted: Extracted, query_features: Sequence[np.ndarray] | np.ndarray, k: int) -> list[list[dict]]:
    """The `k` images found for each free text query; no answer is known to be right."""
    rows, scores = best_rows(np.asarray(query_features), extracted.features.images, k)
    return [
        [
            {"sample": int(extracted.samples[row]), "score": float(score), "is_right": None}
            for row, score in zip(query_rows, query_scores, strict=True)
        ]
        for query_rows, query_scores in zip(rows, scores, strict=True)
    ]


def _place(caption: np.ndarray) -> dict[str, int]:
    return {"sample": int(caption[0]), "place": int(caption[1])}


def _first_coco_images(features: FeatureSet, protocol: str) -> FeatureSet:
    if len(features.images) < COCO_IMAGES:
        raise DataError(
            f"Protocol '{protocol}' needs {COCO_IMAGES:,} images, the set has {len(features.images):,}."
            " Use protocols: full."
        )
    _expect_own_captions(features, protocol)
    return features.select(np.arange(COCO_IMAGES), COCO_CAPTIONS)


def _expect_own_captions(features: FeatureSet, protocol: str) -> None:
    if features.right.kind:
        raise DataError(
            f"Protocol '{protocol}' counts own captions alone; here right answers go by {features.right.kind}."
            " Use protocols: full."
        )


def _size(features: FeatureSet, kind: str) -> str:
    size = f"{kind}: {len(features.images):,} images x {len(features.texts):,} captions"
    return f"{size}, {_ALSO_RIGHT}" if features.right.kind else size


def _clipped(gallery: FeatureSet) -> str:
    beyond = [names.recall(k) for k in RECALL_KS if k >= len(gallery.images)]
    return f"; with so few images, text_to_image {', '.join(beyond)} cannot fail" if beyond else ""
