"""A small set built from class folders, embedded by the fake encoder."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from photo_folders import picture, quick_recipe
from rich.console import Console

from core.config import Choice
from shard_builder.build import build_shards

CLASSES = ("cat", "dog", "goldfish")


def write_folders(folder: Path, per_class: int = 4) -> Path:
    """`folder/CLASS/*.jpg`, every picture another one."""
    for number, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            (folder / name / f"{i}.jpg").write_bytes(picture(100 * number + i, (40, 40)))
    return folder


def build_folders(folder: Path, name: str = "folders", per_class: int = 4, **options: Any) -> str:
    """`folder/NAME` from class folders; `options` of the reader."""
    source = Choice("image_folder", {"folder": str(write_folders(folder / f"{name}_photos", per_class)), **options})
    config = quick_recipe(Path(), folder / name, folder / "cache", source=source, samples_per_shard=5)
    build_shards(config, Console(file=io.StringIO()))
    return config.out
