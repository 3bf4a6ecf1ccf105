"""ECCV Caption: the definitions as double loops, ids found through the annotations, sets and files that do not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from feature_sets import random_features

from core.errors import ConfigError, DataError
from eval.evaluations.eccv_caption import ECCVCaption, right_first
from eval.evaluations.evaluation import Subject
from eval.metrics import FeatureSet
from eval.ranks import retrieval_ranks
from eval.report.drawing.style import DARK
from eval.report.measured import part_of


def by_the_definitions(similarity: np.ndarray, right: set[int]) -> tuple[float, float, float]:
    """One query, over its whole ranking; of equal answers the wrong ones stand first."""
    ranking = sorted(range(len(similarity)), key=lambda i: (-similarity[i], i in right))
    precisions = [
        len(right.intersection(ranking[:r])) / r if ranking[r - 1] in right else 0 for r in range(1, len(right) + 1)
    ]
    r_precision = len(right.intersection(ranking[: len(right)])) / len(right)
    return sum(precisions) / len(right), r_precision, float(ranking[0] in right)


@pytest.mark.parametrize("seed", range(4))
def test_figures_are_those_of_a_double_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    gallery = np.eye(6)[rng.integers(0, 6, 40)]  # equal rows: ties everywhere, and products without rounding
    queries = rng.integers(-3, 4, (300, 6)).astype(float)
    right = [rng.permutation(40)[: rng.integers(1, 12)] for _ in queries]
    expected = [by_the_definitions(gallery @ q, set(own.tolist())) for q, own in zip(queries, right, strict=True)]
    np.testing.assert_allclose(right_first(queries, gallery, right), expected, atol=1e-12)


def test_a_right_answer_outside_of_the_gallery_is_missed() -> None:
    gallery = np.eye(3)
    found = right_first(np.array([[1.0, 0.5, 0]]), gallery, [np.array([0, -1])])
    np.testing.assert_allclose(found, [[0.5, 0.5, 1]])
    np.testing.assert_allclose(right_first(gallery[:1], gallery, [np.array([-1])]), [[0, 0, 0]])


class Names:
    """A shelf whose captions of image 7 are equal."""

    def picture(self, sample: int) -> str:
        raise AssertionError

    def text(self, caption: dict[str, int]) -> str:
        return text_of(caption["sample"], caption["place"])

    def image_id(self, sample: int) -> str:
        return str(1000 + sample)


def text_of(sample: int, place: int) -> str:
    return "a cat" if sample == 7 else f"caption {place} of {sample}"


def coco_like(folder: Path, num_images: int = 30, seed: int = 0) -> tuple[Subject, dict[str, dict[str, list[int]]]]:
    """A set of 30 images with five captions or six, its annotations, and positives over the first five of 28 images."""
    features = random_features(seed, [5 + number % 2 for number in range(num_images)])
    order = np.argsort(features.image_of_text, kind="stable")  # an image's captions in order, as `extract` gives them
    features = FeatureSet(features.images, features.texts[order], features.image_of_text[order])
    place = np.concatenate([np.arange(count) for count in features.captions_per_image()])
    caption_id = (features.image_of_text * 10 + place) * 7 % 1009  # in another order than rows are
    caption_id = caption_id[np.lexsort((caption_id, features.image_of_text))]
    annotations = [
        {"id": int(i), "image_id": int(1000 + image), "caption": f" {text_of(int(image), int(p))}\n"}
        for i, image, p in zip(caption_id, features.image_of_text, place, strict=True)
    ]
    (folder / "captions.json").write_text(json.dumps({"annotations": annotations[::-1]}))
    original = {
        str(1000 + image): [int(i) for i in caption_id[(features.image_of_text == image) & (place < 5)]]
        for image in range(28)
    }
    rng = np.random.default_rng(seed + 1)
    i2t = {i: [*own[:3], *rng.choice(original[str(1000 + int(i) % 28)], 2)] for i, own in list(original.items())[3:12]}
    i2t = {query: [int(i) for i in own] for query, own in i2t.items()}
    i2t["1003"].append(999_999)  # not in the gallery
    t2i = {str(own[0]): [int(i), *(1000 + rng.permutation(28)[:3]).tolist()] for i, own in list(original.items())[5:20]}
    files = {"eccv_image_to_caption": i2t, "eccv_caption_to_image": t2i, "original_image_to_caption": original}
    for name, values in files.items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    captions = np.stack([features.image_of_text, place], axis=1)
    subject = Subject(
        features.images, pairs=features, ranks=retrieval_ranks(features), captions=captions,
        samples=np.arange(num_images), shelf=Names(),
    )  # fmt: skip
    return subject, {**files, "captions": {str(i): [r] for r, i in enumerate(caption_id.tolist())}}


@pytest.mark.parametrize("karpathy", [False, True])
def test_a_coco_like_set_is_measured_by_its_ids(tmp_path: Path, karpathy: bool) -> None:
    subject, files = coco_like(tmp_path)
    assert subject.pairs is not None
    annotations = tmp_path / "captions.json"
    if karpathy:
        listed = json.loads(annotations.read_text())["annotations"]
        images = [{"cocoid": a["image_id"], "sentences": [{"sentid": a["id"], "raw": a["caption"]}]} for a in listed]
        annotations.write_text(json.dumps({"images": images}))
    measured = ECCVCaption(tmp_path, annotations).measure(subject)
    gallery = sorted({i for own in files["original_image_to_caption"].values() for i in own})
    texts = subject.pairs.texts[[files["captions"][str(i)][0] for i in gallery]]
    images = subject.pairs.images[:28]
    i2t = [
        by_the_definitions(texts @ images[int(q) - 1000], {gallery.index(i) if i in gallery else 10**6 for i in own})
        for q, own in files["eccv_image_to_caption"].items()
    ]
    t2i = [
        by_the_definitions(images @ texts[gallery.index(int(q))], {i - 1000 for i in own})
        for q, own in files["eccv_caption_to_image"].items()
    ]
    for direction, expected in (("image_to_text", i2t), ("text_to_image", t2i)):
        for name, value in zip(("map@r", "r_precision", "recall@1"), np.mean(expected, axis=0), strict=True):
            figure = f"eccv_caption/{direction}/{name}"
            assert measured.figures[figure] == pytest.approx(value, abs=1e-9), figure
            assert measured.intervals[figure].low <= value <= measured.intervals[figure].high
    assert measured.shown["num_images"] == 28 and measured.shown["num_captions"] == 140
    part = {"shards": ["mine"], **part_of(measured)}
    assert [row[:2] for row in ECCVCaption.section(part).tables[0].rows] == [
        ("image to text", "9"),
        ("text to image", "15"),
    ]
    (axes,) = ECCVCaption.charts(part, tmp_path, DARK)["figures"].axes
    assert [label.get_text() for label in axes.get_yticklabels()][::3] == [
        "image to text: mAP@R",
        "text to image: mAP@R",
    ]


def test_a_set_that_lacks_test_images_is_refused_with_the_way_out(tmp_path: Path) -> None:
    whole, _ = coco_like(tmp_path)
    assert whole.pairs is not None and whole.captions is not None
    of_first = whole.pairs.image_of_text < 20
    pairs = FeatureSet(whole.images[:20], whole.pairs.texts[of_first], whole.pairs.image_of_text[of_first])
    fewer = replace(
        whole, images=whole.images[:20], pairs=pairs, captions=whole.captions[of_first], samples=np.arange(20)
    )
    evaluation = ECCVCaption(tmp_path, tmp_path / "captions.json")
    with pytest.raises(DataError, match=r"of 28 images .* lacks 8 \(ids 1020, 1021, 1022\).*Karpathy's test split"):
        evaluation.measure(fewer)
    with pytest.raises(DataError, match="lacks 8"):
        evaluation.expect(fewer.known)  # before there are features
    (tmp_path / "captions.json").write_text(json.dumps({"annotations": []}))
    with pytest.raises(DataError, match=r"of 140 captions .* lacks 140"):
        evaluation.measure(whole)


def test_files_that_are_none_of_the_authors_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"eccv_image_to_caption\.json is missing"):
        ECCVCaption(tmp_path, tmp_path / "captions.json")
    subject, files = coco_like(tmp_path)
    evaluation = ECCVCaption(tmp_path, tmp_path / "captions.json")
    (tmp_path / "eccv_image_to_caption.json").write_text(json.dumps({"77": [1]}))
    with pytest.raises(DataError, match=r"query 77 .* is not in original"):
        evaluation.measure(subject)
    for wrong, match in (('{"1000": 3}', "is no object of ids"), ("{", "no whole JSON")):
        (tmp_path / "eccv_image_to_caption.json").write_text(wrong)
        with pytest.raises(DataError, match=match):
            evaluation.measure(subject)
    (tmp_path / "eccv_image_to_caption.json").write_text(json.dumps(files["eccv_image_to_caption"]))
    (tmp_path / "captions.json").write_text('{"images": [{"id": 3}]}')
    with pytest.raises(DataError, match="holds no captions with ids"):
        evaluation.measure(subject)
