"""Drawn scenes: pure functions of (seed, split, number), true captions, whole folders or none."""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from core.errors import DataError
from shard_builder.readers import scenes
from shard_builder.readers.scenes import SETTINGS_NAME, read_scenes
from shard_builder.readers.scenes_captions import captions_of
from shard_builder.readers.scenes_content import COLORS, SHAPES, Scene, draw_content, scene_generator
from shard_builder.readers.scenes_drawing import PAINT, draw_scene

SYNONYMS = {
    "circle": ("circle", "disc", "round shape"),
    "triangle": ("triangle", "three-sided shape"),
    "crescent": ("crescent", "moon"),
    "purple": ("purple", "violet"),
    "small": ("small", "little"),
    "large": ("large", "big"),
    "striped": ("striped", "stripy", "stripes"),
    "dotted": ("dotted", "spotted", "polka-dot", "dots"),
    "checkered": ("checkered", "chequered"),
    "solid": ("solid", "plain"),
}
WORDS = (*COLORS, *SHAPES, "small", "large", "striped", "dotted", "checkered", "solid")


def content(number: int, split: str = "train", seed: int = 0) -> tuple[Scene, tuple[str, ...], np.random.Generator]:
    random = scene_generator(seed, split, number)
    scene = draw_content(random)
    return scene, captions_of(scene, random), random


def spoken(caption: str) -> set[str]:
    """The properties that a caption names, by whole words."""
    text = " " + re.sub(r"[^a-z-]+", " ", caption.lower()) + " "
    return {word for word in WORDS if any(f" {synonym} " in text for synonym in SYNONYMS.get(word, (word,)))}


def test_captions_say_only_what_is_true_and_name_every_object() -> None:
    for number in range(500):
        scene, captions, _ = content(number)
        true = {word for o in scene.objects for word in (o.color, o.shape, o.size, o.texture)}
        needed = {word for o in scene.objects for word in (o.color, o.shape)}
        assert len(set(captions)) == 5
        for caption in captions:
            named = spoken(caption)
            assert named <= true, (caption, scene)
            assert needed <= named, (caption, scene)


def test_what_captions_say_of_left_and_above_agrees_with_the_places() -> None:
    checked: Counter[str] = Counter()
    for number in range(600):
        scene, captions, _ = content(number)
        if scene.relation is None:
            continue
        first, second = scene.objects
        right_way = {
            "left of": first.x < second.x - 0.3,
            "right of": first.x > second.x + 0.3,
            "above": first.y < second.y - 0.3,
            "below": first.y > second.y + 0.3,
        }
        assert [relation for relation, holds in right_way.items() if holds] == [scene.relation]
        for caption in captions:
            if " is to the left of " in caption and first.color != second.color:
                before = caption.split(" is to the left of ")[0]
                left = min(scene.objects, key=lambda o: o.x)
                assert any(word in before for word in SYNONYMS.get(left.color, (left.color,))), (caption, scene)
                checked["left"] += 1
            if " at the top" in caption and " is " not in caption:
                top = min(scene.objects, key=lambda o: o.y)
                clause = caption[: caption.index(" at the top")].split(" at the bottom")[-1]
                assert any(word in clause.lower() for word in SYNONYMS.get(top.color, (top.color,))), (caption, scene)
                checked["top"] += 1
    assert min(checked["left"], checked["top"]) > 10


def test_objects_stay_inside_the_picture_and_apart() -> None:
    for number in range(500):
        scene, _, _ = content(number)
        for item in scene.objects:
            assert item.radius < min(item.x, 1 - item.x) + 0.02 and item.radius < min(item.y, 1 - item.y) + 0.02
        if len(scene.objects) == 2:
            first, second = scene.objects
            distance = max(abs(first.x - second.x), abs(first.y - second.y))
            assert distance > (first.radius + second.radius) * 0.98
            assert (first.color, first.shape) != (second.color, second.shape)


def test_the_colour_spoken_of_is_the_nearest_paint_in_the_picture() -> None:
    names, paints = list(PAINT), np.array(list(PAINT.values()), float)
    for number in range(200):
        scene, _, random = content(number)
        picture = draw_scene(scene, 160, random)
        for item in scene.objects:
            if item.texture != "solid" or item.shape == "crescent":  # a crescent's centre may lie in its bite
                continue
            x, y = round(item.x * 160), round(item.y * 160)
            pixel = picture[y - 2 : y + 3, x - 2 : x + 3].reshape(-1, 3).mean(axis=0)
            nearest = names[int(((paints - pixel) ** 2).sum(axis=1).argmin())]
            assert nearest == item.color, (number, item, pixel)


def test_a_scene_depends_on_seed_split_and_number_alone() -> None:
    def picture(number: int, split: str, seed: int) -> bytes:
        scene, _, random = content(number, split, seed)
        return draw_scene(scene, 64, random).tobytes()

    pictures = {
        (n, split, seed): picture(n, split, seed) for n in range(5) for split in ("train", "val") for seed in (0, 1)
    }
    assert len(set(pictures.values())) == 20
    assert all(picture(*key) == value for key, value in reversed(pictures.items()))


def test_held_out_scenes_rarely_look_alike() -> None:
    def look(number: int) -> object:
        scene = content(number, "val")[0]
        return tuple((o.color, o.shape, o.texture, o.size) for o in scene.objects), scene.relation, scene.place

    assert sum(count - 1 for count in Counter(map(look, range(400))).values()) <= 8


def test_scenes_lie_on_disk_in_cocos_own_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = read_scenes("val", folder=str(tmp_path), count=12, size=96)
    coco = COCO(str(tmp_path / "val/annotations/captions_val.json"))
    capsys.readouterr()
    assert {"info", "licenses", "images", "annotations"} <= coco.dataset.keys()
    assert len(result.records) == len(coco.imgs) == 12 and len(coco.anns) == 60 and not result.skipped
    for number, record in enumerate(result.records):
        assert record.captions == content(number, "val")[1]
        assert record.source == "scenes:0:val" and record.image_id == str(number)
        with Image.open(record.image) as image:
            assert (image.format, image.size) == ("JPEG", (96, 96))


def test_a_larger_count_begins_with_the_scenes_of_a_smaller_one(tmp_path: Path) -> None:
    few = read_scenes("train", folder=str(tmp_path / "few"), count=3, size=64)
    many = read_scenes("train", folder=str(tmp_path / "many"), count=6, size=64)
    for a, b in zip(few.records, many.records, strict=False):
        assert a.captions == b.captions and Path(a.image).read_bytes() == Path(b.image).read_bytes()


def test_processes_draw_the_same_scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_scenes("train", folder=str(tmp_path / "one"), count=60, size=64)
    monkeypatch.setattr(scenes, "_WORTH_PROCESSES", 1)
    read_scenes("train", folder=str(tmp_path / "several"), count=60, size=64)
    one, several = (
        {str(path.relative_to(tmp_path / name)): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in ("one", "several")
    )
    assert len(one) == 62 and one == several


def test_a_complete_drawing_is_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = read_scenes("train", folder=str(tmp_path), count=4, size=64)
    monkeypatch.setattr(scenes, "draw_scene", lambda *_: pytest.fail("drawn again"))
    assert read_scenes("train", folder=str(tmp_path), count=4, size=64) == first


def test_an_interrupted_drawing_leaves_nothing_and_is_drawn_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / ".partial-train.killed").mkdir()  # what a killed process leaves
    with monkeypatch.context() as patch:
        patch.setattr(scenes, "_coco_dataset", interrupted)
        with pytest.raises(KeyboardInterrupt):
            read_scenes("train", folder=str(tmp_path), count=4, size=64)
    assert list(tmp_path.iterdir()) == []
    assert len(read_scenes("train", folder=str(tmp_path), count=4, size=64).records) == 4


def test_a_folder_of_other_scenes_or_of_something_else_is_refused(tmp_path: Path) -> None:
    read_scenes("train", folder=str(tmp_path), count=2, size=64)
    with pytest.raises(DataError, match=r"train: holds scenes of count 2, not 3; seed 0, not 5\. Delete it or"):
        read_scenes("train", folder=str(tmp_path), count=3, size=64, seed=5)
    assert json.loads((tmp_path / "train" / SETTINGS_NAME).read_text())["count"] == 2
    (tmp_path / "val").mkdir()
    with pytest.raises(DataError, match="holds no drawn scenes"):
        read_scenes("val", folder=str(tmp_path), count=2, size=64)
    with pytest.raises(DataError, match="count is 0"):
        read_scenes("test", folder=str(tmp_path), count=0)
    with pytest.raises(DataError, match="size is 8"):
        read_scenes("test", folder=str(tmp_path), count=1, size=8)
    with pytest.raises(DataError, match="local disk"):
        read_scenes("test", folder="s3://bucket/scenes", count=1)
