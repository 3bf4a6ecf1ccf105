"""ECCV Caption as its authors count it: their package with their judged answers over COCO's 5,000 test images.

Needs the peers (`make peers`); skips without them.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.evaluations.eccv_caption import ECCVCaption
from eval.evaluations.evaluation import Subject
from eval.metrics import FeatureSet, Ranks

PACKAGE = Path(__file__).resolve().parents[2] / ".peers/eccv_caption"
THEIRS = {"map@r": "eccv_map_at_r", "r_precision": "eccv_rprecision", "recall@1": "eccv_r1"}


def authors() -> Any:
    """Their package alone: other peers bring other versions of what we use."""
    if not PACKAGE.is_dir():
        pytest.skip("eccv_caption is not installed (make peers)")
    spec = importlib.util.spec_from_file_location("eccv_caption", PACKAGE / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["eccv_caption"] = module
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of ujson and of a file that this test does without
        spec.loader.exec_module(module)
        return module.Metrics()


class Named:
    """COCO's test images by their ids; captions, whose texts are not in the package, by theirs."""

    def __init__(self, images: list[int], captions: list[list[int]]) -> None:
        self._images, self._captions = images, captions

    def image_id(self, sample: int) -> str:
        return str(self._images[sample])

    def text(self, caption: dict[str, int]) -> str:
        return f"caption {self._captions[caption['sample']][caption['place']]}"

    def picture(self, sample: int) -> str:
        raise AssertionError


def test_figures_are_those_of_the_authors_package(tmp_path: Path) -> None:
    metrics = authors()
    gallery = {int(k): v for k, v in json.loads((PACKAGE / "data/original_image_to_caption.json").read_text()).items()}
    images, captions = list(gallery), list(gallery.values())
    assert len(images) == 5000
    rng = np.random.default_rng(0)
    image_of_text = np.repeat(np.arange(5000), [len(own) for own in captions])
    pictures = unit(rng.standard_normal((5000, 32)))
    texts = unit(pictures[image_of_text] + 1.2 * rng.standard_normal((len(image_of_text), 32)) / 32**0.5)
    pairs = FeatureSet(pictures, texts, image_of_text)
    place = np.concatenate([np.arange(len(own)) for own in captions])
    named = Named(images, captions)
    annotations = [
        {"image_id": image, "id": i, "caption": f"caption {i}"}
        for image, own in zip(images, captions, strict=True)
        for i in own
    ]
    (tmp_path / "captions.json").write_text(json.dumps({"annotations": annotations}))
    not_asked_for = Ranks(*[np.ones(0)] * 4)
    subject = Subject(
        pictures, pairs=pairs, ranks=not_asked_for, samples=np.arange(5000), shelf=named,  # type: ignore[arg-type]
        captions=np.stack([image_of_text, place], axis=1),
    )  # fmt: skip
    measured = ECCVCaption(PACKAGE / "data", tmp_path / "captions.json").measure(subject)

    numbers = np.array([i for own in captions for i in own])
    judged = metrics.eccv_gts
    found_texts = ranked(np.array(images), pictures, numbers, texts, judged["i2t"])
    found_images = ranked(numbers, texts, np.array(images), pictures, judged["t2i"])
    theirs = metrics.compute_all_metrics(found_texts, found_images, target_metrics=tuple(THEIRS.values()))
    for name, their_name in THEIRS.items():
        for direction, short in (("image_to_text", "i2t"), ("text_to_image", "t2i")):
            figure = measured.figures[f"eccv_caption/{direction}/{name}"]
            assert figure == pytest.approx(theirs[their_name][short], abs=1e-9), (direction, name)
            assert 0.02 < figure < 0.98


def ranked(
    names: np.ndarray, queries: np.ndarray, numbers: np.ndarray, answers: np.ndarray, judged: dict[int, list[int]]
) -> dict[int, list[int]]:
    """Of each judged query the first 1,000 answers, nearest first."""
    row_of = {int(name): row for row, name in enumerate(names)}
    similarity = queries[[row_of[name] for name in judged]] @ answers.T
    return {name: numbers[np.argsort(-own)[:1000]].tolist() for name, own in zip(judged, similarity, strict=True)}


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
