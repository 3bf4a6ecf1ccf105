"""ECCV Caption: retrieval on COCO's test images where every caption that fits an image is right (Chun et al. 2022).

COCO counts an image's own five captions alone, though many others fit. Here people and five models have judged 1,261
images and 1,332 captions: positives are those of naver-ai/eccv-caption, measured as its `compute_eccv_metrics` does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from core.errors import ConfigError, DataError
from eval.evaluations.evaluation import Evaluation, Known, Measured, Need, Section, Subject, Table
from eval.metrics import Interval, share_interval
from eval.spread import spread
from trainer.telemetry.names import DIRECTIONS, IMAGE_TO_TEXT, TEXT_TO_IMAGE

if TYPE_CHECKING:
    from eval.report.drawing.style import Figure, Theme

FIGURES = ("map@r", "r_precision", "recall@1")
_SPOKEN = ("mAP@R", "R-Precision", "R@1")
_FILES = {IMAGE_TO_TEXT: "image_to_caption.json", TEXT_TO_IMAGE: "caption_to_image.json"}
_QUERIES_AT_ONCE = 256
Ids = dict[int, list[int]]  # of a query -> of what is right for it


@dataclass(frozen=True)
class ECCVCaption(Evaluation):
    """mAP@R, R-Precision and Recall@1 by the positives of ECCV Caption.

    Attributes:
        positives: folder of eccv_image_to_caption.json, eccv_caption_to_image.json and original_image_to_caption.json
            (`eccv_caption/data` of github.com/naver-ai/eccv-caption).
        annotations: which caption has which id: captions_val2014.json, or Karpathy's dataset_coco.json.
    """

    positives: Path
    annotations: Path

    needs: ClassVar[tuple[Need, ...]] = ("text", "shelf")
    title: ClassVar[str] = "ECCV Caption"

    def __post_init__(self) -> None:
        super().__post_init__()
        for path in (*self._paths(), self.annotations):
            if not path.is_file():
                raise ConfigError(
                    f"eccv_caption: {path} is missing. Name the folder eccv_caption/data of naver-ai/eccv-caption as "
                    "positives, and captions_val2014.json as annotations."
                )

    def figures(self) -> tuple[str, ...]:
        """All three in both directions."""
        return tuple(_figure(direction, name) for direction in DIRECTIONS for name in FIGURES)

    def expect(self, known: Known) -> None:
        """Raise where the set lacks some of COCO's images or captions, or a file is not what it should be."""
        self._judged(known)

    def measure(self, subject: Subject) -> Measured:
        """Queries are those that were judged, the gallery is COCO's: 5,000 images, 25,000 captions.

        Raises:
            DataError: the set lacks some of these, or a file is not what it should be.
        """
        assert subject.pairs is not None
        own, ids, rows = self._judged(subject.known)
        features = {
            IMAGE_TO_TEXT: subject.pairs.images[rows[IMAGE_TO_TEXT]],
            TEXT_TO_IMAGE: subject.pairs.texts[rows[TEXT_TO_IMAGE]],
        }
        image_ids, text_ids = ids[IMAGE_TO_TEXT], ids[TEXT_TO_IMAGE]
        intervals, sizes = {}, {}
        for direction, other in zip(DIRECTIONS, reversed(DIRECTIONS), strict=True):
            queries = sorted(own[direction])
            row = {number: place for place, number in enumerate(ids[other])}
            right = [np.array([row.get(i, -1) for i in sorted(set(own[direction][q]))]) for q in queries]
            found = right_first(features[direction][np.searchsorted(ids[direction], queries)], features[other], right)
            sizes[direction] = {"queries": len(queries), "positives": sum(map(len, right))}
            for name, values in zip(FIGURES, found.T, strict=True):
                intervals[_figure(direction, name)] = share_interval(values)
        shown = {"num_images": len(image_ids), "num_captions": len(text_ids), "queries": sizes}
        return Measured({name: interval.estimate for name, interval in intervals.items()}, intervals, shown)

    def _judged(self, known: Known) -> tuple[dict[str, Ids], dict[str, list[int]], dict[str, list[int]]]:
        """Of each direction what is right for its queries, the ids that these are among, and the rows of the ids.

        Raises:
            DataError: the set lacks some of these, or a file is not what it should be.
        """
        own, gallery = self._files(), _read_ids(self._paths()[2])
        images, texts = _rows(known, _caption_ids(self.annotations))
        image_ids, text_ids = sorted(gallery), sorted({text for texts in gallery.values() for text in texts})
        self._expect_all(image_ids, images, "images")
        self._expect_all(text_ids, texts, "captions")
        for direction, among in ((IMAGE_TO_TEXT, image_ids), (TEXT_TO_IMAGE, text_ids)):
            self._expect_queries(own[direction], among)
        rows = {IMAGE_TO_TEXT: [images[i] for i in image_ids], TEXT_TO_IMAGE: [texts[i] for i in text_ids]}
        return own, {IMAGE_TO_TEXT: image_ids, TEXT_TO_IMAGE: text_ids}, rows

    def _paths(self) -> tuple[Path, ...]:
        names = [f"eccv_{_FILES[direction]}" for direction in DIRECTIONS]
        return tuple(self.positives / name for name in (*names, f"original_{_FILES[IMAGE_TO_TEXT]}"))

    def _files(self) -> dict[str, Ids]:
        return {direction: _read_ids(path) for direction, path in zip(DIRECTIONS, self._paths()[:2], strict=True)}

    def _expect_all(self, wanted: Sequence[int], there: Mapping[int, int], what: str) -> None:
        lacking = [str(i) for i in wanted if i not in there]
        if lacking:
            raise DataError(
                f"eccv_caption: of {len(wanted):,} {what} of {self.positives} the set lacks {len(lacking):,} (ids "
                f"{', '.join(lacking[:3])}), by image_id and {self.annotations.name}. Evaluate Karpathy's test split "
                "of COCO (split=test source.karpathy=dataset_coco.json), or leave eccv_caption out."
            )

    def _expect_queries(self, right: Ids, gallery: Sequence[int]) -> None:
        strange = sorted(right.keys() - set(gallery)) + [query for query, own in right.items() if not own]
        if strange:
            raise DataError(
                f"eccv_caption: query {strange[0]} of {self.positives} ({len(strange)} in all) has no right answer, or "
                "is not in original_image_to_caption.json. Fetch all files from one version of naver-ai/eccv-caption."
            )

    @staticmethod
    def section(part: Mapping[str, Any]) -> Section:
        """Both directions."""
        rows = [
            (direction.replace("_", " "), f"{part['queries'][direction]['queries']:,}", *_cells(part, direction))
            for direction in DIRECTIONS
        ]
        return Section(
            f"Among {part['num_images']:,} images and {part['num_captions']:,} captions, where every caption that fits "
            "an image is right. With R right answers, R-Precision is their share among the first R found, and mAP@R "
            "also asks that they stand in front; in brackets 95 % intervals over queries (Chun et al. 2022).",
            tables=[Table(("direction", "queries", *(f"{name} %" for name in _SPOKEN)), rows)],
        )

    @staticmethod
    def charts(part: Mapping[str, Any], folder: Path, theme: Theme) -> dict[str, Figure]:
        """All figures with their intervals."""
        from eval.report.drawing.intervals import IntervalRow, interval_rows  # with matplotlib

        rows = [
            IntervalRow(
                f"{direction.replace('_', ' ')}: {spoken}", Interval(**part["intervals"][_figure(direction, name)])
            )
            for direction in DIRECTIONS
            for name, spoken in zip(FIGURES, _SPOKEN, strict=True)
        ]
        return {"figures": interval_rows("ECCV Caption", "with 95 % intervals over queries", rows, theme)}


def right_first(queries: np.ndarray, gallery: np.ndarray, right: Sequence[np.ndarray]) -> np.ndarray:
    """`(Q, 3)` mAP@R, R-Precision and Recall@1 of each query; wrong answers that tie stand first. Collective.

    With `R` right answers and `precision(i)` the share of right ones among the first `i` that are found:
    `mAP@R = 1/R * sum over i <= R of precision(i) * [answer i is right]` (Musgrave et al. 2020, section 4),
    `R-Precision = precision(R)`, `Recall@1 = precision(1)`.

    Args:
        queries: `(Q, D)`, unit length.
        gallery: `(G, D)`, unit length.
        right: of each query the rows of `gallery` that are right, at least one; -1 for one that is not in the gallery,
            which counts in `R` and is never found, as in the authors' code.
    """

    def figures(rows: slice) -> np.ndarray:
        similarity = queries[rows] @ gallery.T
        return np.array([_figures(s, own) for s, own in zip(similarity, right[rows], strict=True)]).reshape(-1, 3)

    return spread(len(queries), _QUERIES_AT_ONCE, figures)


def _figures(similarity: np.ndarray, right: np.ndarray) -> tuple[float, float, float]:
    there = right[right >= 0]
    own, wrong = np.sort(similarity[there])[::-1], np.sort(np.delete(similarity, there))
    nth = np.arange(1, len(own) + 1)
    rank = nth + len(wrong) - np.searchsorted(wrong, own, side="left")
    is_in = rank <= len(right)
    return (nth / rank)[is_in].sum() / len(right), is_in.sum() / len(right), float((rank == 1).any())


def _rows(known: Known, caption_ids: Mapping[tuple[str, str], list[int]]) -> tuple[dict[int, int], dict[int, int]]:
    """COCO's id of an image, and of a caption -> its row."""
    assert known.captions is not None and known.shelf is not None
    name_of = cache(known.shelf.image_id)
    names = [name_of(sample) for sample in known.samples.tolist()]
    images = {int(name): row for row, name in enumerate(names) if name.isdecimal()}
    texts: dict[int, int] = {}
    taken: dict[tuple[str, str], int] = {}
    for row, (sample, place) in enumerate(known.captions().tolist()):
        key = name_of(sample), known.shelf.text({"sample": sample, "place": place})
        nth = taken[key] = taken.get(key, -1) + 1  # an image may have a caption twice
        if nth < len(own := caption_ids.get(key, [])):
            texts[own[nth]] = row
    return images, texts


def _caption_ids(path: Path) -> dict[tuple[str, str], list[int]]:
    """Image id and text -> ids of the image's captions that say this, in order."""
    values = _read_json(path)
    try:
        if "annotations" in values:
            entries = [(a["image_id"], a["id"], a["caption"]) for a in values["annotations"]]
        else:
            entries = [(i["cocoid"], s["sentid"], s["raw"]) for i in values["images"] for s in i["sentences"]]
    except (KeyError, TypeError):
        raise DataError(
            f"{path}: holds no captions with ids. Set annotations to captions_val2014.json or dataset_coco.json."
        ) from None
    ids: dict[tuple[str, str], list[int]] = {}
    for image, caption, text in sorted(entries, key=lambda entry: entry[1]):
        ids.setdefault((str(image), " ".join(text.split())), []).append(caption)
    return ids


def _read_ids(path: Path) -> Ids:
    values = _read_json(path)
    try:
        return {int(query): [int(i) for i in right] for query, right in values.items()}
    except (TypeError, ValueError, AttributeError):
        raise DataError(
            f"{path}: is no object of ids and lists of ids. Fetch it again from naver-ai/eccv-caption."
        ) from None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise DataError(f"{path}: is no whole JSON. Fetch it again.") from None


def _cells(part: Mapping[str, Any], direction: str) -> list[str]:
    intervals = [part["intervals"][_figure(direction, name)] for name in FIGURES]
    return [f"{100 * i['estimate']:.1f} ({100 * i['low']:.1f} to {100 * i['high']:.1f})" for i in intervals]


def _figure(direction: str, name: str) -> str:
    return f"eccv_caption/{direction}/{name}"
