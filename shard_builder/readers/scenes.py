"""Draws captioned scenes of coloured shapes, writes them in COCO's layout, and reads them with the coco reader.

Scene `number` of a split depends on seed, split and number alone: other splits are other scenes, and a larger count
begins with the scenes of a smaller one.
"""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

from PIL import Image

from core.errors import DataError
from core.image import encode_jpeg
from core.locks import lock
from core.storage import is_local, join, local, publish_folder, sweep_partials
from shard_builder.readers.coco import read_coco
from shard_builder.readers.files import read_json
from shard_builder.readers.scenes_captions import CAPTIONS_PER_SCENE, captions_of
from shard_builder.readers.scenes_content import draw_content, scene_generator
from shard_builder.readers.scenes_drawing import draw_scene
from shard_builder.records import ReadResult

DRAWING_VERSION = 1  # raise it with any change of what a scene looks like or what is said of it
SETTINGS_NAME = "scenes.json"
_QUALITY = 92
_TASK = 50  # scenes drawn between two answers of a drawing process
_WORTH_PROCESSES = 500  # fewer scenes are drawn sooner than processes start


def read_scenes(split: str, *, folder: str, count: int, size: int = 160, seed: int = 0) -> ReadResult:
    """`count` scenes of a split; drawn into `folder`/`split` unless they lie there already.

    Args:
        folder: local folder; `folder`/`split` gets images/, annotations/captions_`split`.json and scenes.json.
        count: number of scenes.
        size: side of the square pictures, in pixels.
        seed: of contents, captions, light and noise.
    """
    _check(folder, count, size)
    settings = {"drawing_version": DRAWING_VERSION, "split": split, "count": count, "size": size, "seed": seed}
    target = local(join(folder, split))
    if not _is_drawn(target, settings):
        with lock(target.parent / "scenes.lock", f"drawing {count} scenes of split {split}"):
            sweep_partials(target.parent)
            if not _is_drawn(target, settings):
                publish_folder(lambda partial: _fill(partial, settings), target)
    # Whole or absent: publish_folder renames a finished folder, so nothing here can be half a drawing.
    result = read_coco(split, images=str(target / "images"), captions=str(_captions_path(target, split)))
    source = f"scenes:{seed}:{split}"  # numbers start again in each split and seed
    return ReadResult(
        tuple(replace(record, source=source) for record in result.records),
        tuple(replace(skip, source=source) for skip in result.skipped),
    )


def _check(folder: str, count: int, size: int) -> None:
    if not is_local(folder):
        raise DataError(f"{folder}: scenes are drawn on a local disk only. Set source.folder to a local folder.")
    if count < 1:
        raise DataError(f"source scenes: count is {count}. Ask for at least one scene.")
    if not 64 <= size <= 1024:
        raise DataError(
            f"source scenes: size is {size}. Choose 64 to 1024 pixels: patterns need room, discs need none."
        )


def _is_drawn(target: Path, settings: dict[str, object]) -> bool:
    if not target.exists():
        return False
    if not (target / SETTINGS_NAME).exists():
        raise DataError(f"{target}: is there but holds no drawn scenes. Set source.folder to another folder.")
    found = read_json(str(target / SETTINGS_NAME), "folder")
    if found != settings:
        assert isinstance(found, dict)
        differing = [
            f"{key} {found.get(key)}, not {value}" for key, value in settings.items() if found.get(key) != value
        ]
        raise DataError(
            f"{target}: holds scenes of {'; '.join(differing)}. Delete it or set source.folder to another folder."
        )
    return True


def _fill(folder: Path, settings: dict[str, object]) -> None:
    """Draw all scenes and write their captions; settings last."""
    split = str(settings["split"])
    (folder / "images").mkdir()
    captions_path = _captions_path(folder, split)
    captions_path.parent.mkdir()
    captions_path.write_text(json.dumps(_coco_dataset(settings, list(_draw_all(folder, settings)))))
    (folder / SETTINGS_NAME).write_text(json.dumps(settings))


def _draw_all(folder: Path, settings: dict[str, object]) -> Iterator[tuple[str, ...]]:
    """Write every picture; yields the captions in the scenes' order."""
    count = int(str(settings["count"]))
    tasks = [range(start, min(start + _TASK, count)) for start in range(0, count, _TASK)]
    if count < _WORTH_PROCESSES:
        drawn = map(_draw_task, [folder] * len(tasks), [settings] * len(tasks), tasks)
        yield from (captions for answer in drawn for captions in answer)
        return
    num_workers = min(len(os.sched_getaffinity(0)), len(tasks))
    # Not fork: the caller may hold threads (progress display, text encoder) whose locks a fork would freeze.
    with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")) as pool:
        for answer in pool.map(_draw_task, [folder] * len(tasks), [settings] * len(tasks), tasks):
            yield from answer


def _draw_task(folder: Path, settings: dict[str, object], numbers: range) -> list[tuple[str, ...]]:
    split, size, seed = str(settings["split"]), int(str(settings["size"])), int(str(settings["seed"]))
    captions = []
    for number in numbers:
        random = scene_generator(seed, split, number)
        scene = draw_content(random)
        captions.append(captions_of(scene, random))
        picture = Image.fromarray(draw_scene(scene, size, random))
        (folder / "images" / _file_name(split, number)).write_bytes(encode_jpeg(picture, _QUALITY))
    return captions


def _coco_dataset(settings: dict[str, object], captions: list[tuple[str, ...]]) -> dict[str, object]:
    size, split = settings["size"], str(settings["split"])
    return {
        "info": {"description": "shardclip scenes", "version": str(DRAWING_VERSION), "contributor": "shardclip"},
        "licenses": [{"id": 1, "name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"}],
        "images": [
            {"id": number, "file_name": _file_name(split, number), "width": size, "height": size, "license": 1}
            for number in range(len(captions))
        ],
        "annotations": [
            {"id": number * CAPTIONS_PER_SCENE + i, "image_id": number, "caption": caption}
            for number, own in enumerate(captions)
            for i, caption in enumerate(own)
        ],
    }


def _file_name(split: str, number: int) -> str:
    return f"SCENES_{split}_{number:012d}.jpg"


def _captions_path(folder: Path, split: str) -> Path:
    return folder / "annotations" / f"captions_{split}.json"
