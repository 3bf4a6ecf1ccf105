"""What a report shows of a shard set: thumbnails and captions of the samples that queries found."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from core.distributed import is_main
from core.image import decode_into, encode_jpeg
from core.shard_index import IMAGE
from core.shard_set import ShardSet
from core.storage import join, publish_bytes
from eval.evaluations.evaluation import Subject
from eval.evaluations.retrieval import best_rows, caption_examples, image_examples, query_answers
from eval.features import Extracted
from eval.metrics import Ranks

THUMBNAIL_SIZE = 176  # pixels
RANK_EDGES = (1, 2, 6, 11, 26, 51, 101, 251, 501, 1001, 2501, 5001, 10001)  # bands: 1, 2-5, 6-10, 11-25, ...


class Shelf:
    """Samples of one shard set, for people: captions as text, images as thumbnails in `folder/thumbnails`.

    Args:
        name: opens the file names, so that several shard sets can share a folder.
        captions: by sample number, in place of the set's own.
    """

    def __init__(
        self, shard_set: ShardSet, folder: Path, name: str, captions: Mapping[int, Sequence[str]] | None = None
    ) -> None:
        self._shard_set, self._folder, self._name, self._captions = shard_set, folder, name, captions
        self._stamp = shard_set.fingerprint[:8]  # pictures of another set may lie there already

    def picture(self, sample: int) -> str:
        """Path of the sample's thumbnail below `folder`; written when first asked for, by the first of all ranks."""
        place = f"thumbnails/{self._name}-{self._stamp}-{sample:09d}.jpg"
        if is_main() and not (self._folder / place).exists():
            publish_bytes(thumbnail(self._shard_set, sample), join(self._folder, place))
        return place

    def key(self, sample: int) -> str:
        """The sample's key in its shard."""
        return self._shard_set.key(sample)

    def sheet(self, samples: Sequence[int], side: int, columns: int) -> str:
        """Path below `folder` of one picture: thumbnails of `side` pixels in rows of so many; written anew."""
        named = hashlib.sha256(f"{side} {columns} {list(samples)}".encode()).hexdigest()[:12]
        place = f"thumbnails/{self._name}-sheet-{named}.jpg"
        if not is_main():
            return place
        whole = Image.new("RGB", (side * columns, side * -(-len(samples) // columns)))
        for number, sample in enumerate(samples):
            image = _image(self._shard_set, sample).resize((side, side), Image.Resampling.LANCZOS)
            whole.paste(image, (number % columns * side, number // columns * side))
        publish_bytes(encode_jpeg(whole, quality=70), join(self._folder, place))
        return place

    def text(self, caption: Mapping[str, int]) -> str:
        """The caption at `{"sample": ..., "place": ...}`."""
        sample = caption["sample"]
        own = self._shard_set.captions(sample) if self._captions is None else self._captions[sample]
        return own[caption["place"]]

    def image_id(self, sample: int) -> str:
        """What the data set calls the sample's image; "" where nothing is said."""
        image_id = self._shard_set.info(sample).get("image_id")
        return "" if image_id is None else str(image_id)


def thumbnail(shard_set: ShardSet, sample: int, side: int = THUMBNAIL_SIZE) -> bytes:
    """A sample's picture as a JPEG of at most `side` pixels."""
    image = _image(shard_set, sample)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return encode_jpeg(image, quality=88)


def _image(shard_set: ShardSet, sample: int) -> Image.Image:
    spec = shard_set.image_spec(sample)
    pixels = np.empty((spec.size, spec.size, 3), dtype=np.uint8)
    decode_into(shard_set.member(sample, IMAGE), spec, pixels)
    return Image.fromarray(pixels)


def show_retrieval(extracted: Extracted, ranks: Ranks, shelf: Shelf, count: int, k: int = 5) -> dict[str, Any]:
    """Captions and images drawn at random with what each found, as values for `results.json`."""

    @cache  # equal captions of many pictures are asked for again and again
    def text_of(row: int) -> str:
        sample, place = extracted.captions[row]
        return shelf.text({"sample": int(sample), "place": int(place)})

    return {
        "captions": [
            {"query": shelf.text(example["text"]), "rank": example["rank"], "answers": _pictures(example, shelf)}
            for example in caption_examples(extracted, ranks, count, k, text_of)
        ],
        "images": [
            {
                "picture": shelf.picture(example["sample"]),
                "rank": example["rank"],
                "answers": [
                    {"text": shelf.text(answer["text"]), **_judged(answer)} for answer in example["answers"]
                ],
            }
            for example in image_examples(extracted, ranks, count, k, text_of)
        ],
    }  # fmt: skip


def show_queries(
    extracted: Extracted, queries: Sequence[str], query_features: np.ndarray, shelf: Shelf, k: int = 5
) -> list[dict[str, Any]]:
    """Free text queries with the pictures each found."""
    return [
        {"query": query, "answers": _pictures({"answers": answers}, shelf)}
        for query, answers in zip(queries, query_answers(extracted, query_features, k), strict=True)
    ]


def show_neighbours(
    subject: Subject,
    samples: np.ndarray,
    classes: Sequence[str],
    own: Shelf,
    others: Shelf,
    *,
    count: int,
    k: int = 5,
) -> list[dict[str, Any]]:
    """Labelled pictures drawn at random with their nearest neighbours; right are those of the same class.

    Args:
        samples: `(N,)` of the subject's pictures.
        own, others: of the subject's set, and of its gallery's.
    """
    assert subject.labels is not None
    labelled = np.flatnonzero(subject.labels >= 0)
    shown = np.random.default_rng((0, 4)).permutation(labelled)[:count]
    if subject.gallery is None:
        found = _own_neighbours(subject.images, shown, labelled, k)
        gallery_labels, gallery_samples, others = subject.labels, samples, own
    else:
        found = best_rows(subject.images[shown], subject.gallery.images, k)
        gallery_labels, gallery_samples = subject.gallery.labels, subject.gallery.samples
    return [
        {
            "picture": own.picture(int(samples[image])),
            "class": classes[subject.labels[image]],
            "answers": [
                {
                    "picture": others.picture(int(gallery_samples[row])),
                    "class": classes[gallery_labels[row]],
                    "score": round(float(score), 4),
                    "is_right": bool(gallery_labels[row] == subject.labels[image]),
                }
                for row, score in zip(rows, scores, strict=True)
            ],
        }
        for image, rows, scores in zip(shown, *found, strict=True)
    ]


def _own_neighbours(
    images: np.ndarray, queries: np.ndarray, gallery: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of `images` nearest to some of them, without themselves, and their cosines; both are labelled rows."""
    similarity = images[queries] @ images[gallery].T
    similarity[queries[:, None] == gallery] = -np.inf
    order = np.argsort(-similarity, axis=1, kind="stable")[:, : min(k, len(gallery) - 1)]
    return gallery[order], np.take_along_axis(similarity, order, axis=1)


def show_similarity(extracted: Extracted, shelf: Shelf, count: int, seed: int = 0) -> dict[str, Any]:
    """Cosines of some images drawn at random with their first captions: row = caption, column = image."""
    features = extracted.features
    images = np.random.default_rng((seed, 2)).permutation(len(features.images))[:count]
    first_text = np.unique(features.image_of_text, return_index=True)[1][images]
    cosines = features.texts[first_text] @ features.images[images].T
    places = [{"sample": int(sample), "place": int(place)} for sample, place in extracted.captions[first_text]]
    return {
        "cosines": [[round(float(value), 4) for value in row] for row in cosines],
        "captions": [shelf.text(place) for place in places],
        "pictures": [shelf.picture(int(sample)) for sample in extracted.samples[images]],
    }


def rank_bands(ranks: Ranks) -> dict[str, Any]:
    """Counts of ranks per band, for both directions, up to the worst rank that occurs."""
    worst = int(max(ranks.image_to_text.max(), ranks.text_to_image.max()))
    edges = [edge for edge in RANK_EDGES if edge <= worst] + [worst + 1]
    return {
        "edges": edges,
        "image_to_text": np.histogram(ranks.image_to_text, edges)[0].tolist(),
        "text_to_image": np.histogram(ranks.text_to_image, edges)[0].tolist(),
    }


def _pictures(example: Mapping[str, Any], shelf: Shelf) -> list[dict[str, Any]]:
    return [{"picture": shelf.picture(answer["sample"]), **_judged(answer)} for answer in example["answers"]]


def _judged(answer: Mapping[str, Any]) -> dict[str, Any]:
    return {"score": round(answer["score"], 4), "is_right": answer["is_right"]}
