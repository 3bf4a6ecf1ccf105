"""A small built set and a small adopted one to add columns to, and ways to add them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from photo_folders import quick_recipe, write_photos
from rich.console import Console
from webdataset import ShardWriter

from core.columns import ColumnHead
from core.config import Choice
from launch.columns import COLUMNS
from shard_builder.build import build_shards
from shard_builder.column import make_columns
from shard_builder.index_tars import index_shards


def build_set(folder: Path, cache: Path, count: int = 20) -> Path:
    """`folder/built`: labelled pictures in shards of 8, one to three captions each, embedded by the fake encoder."""
    photos = write_photos(folder / "photos", count)
    config = quick_recipe(photos, folder / "built", cache, samples_per_shard=8)
    build_shards(config, Console(file=io.StringIO()))
    return Path(config.out)


def adopt_set(folder: Path, count: int = 12) -> Path:
    """`folder/adopted`: tars of others, keys that begin anew in each tar, two image ids that stand twice."""
    photos = write_photos(folder / "others", count).parent
    out = folder / "adopted"
    out.mkdir()
    for tar in range(2):
        with ShardWriter(str(out / f"{tar}-%05d.tar"), maxcount=100, verbose=0) as writer:
            for number, path in enumerate(sorted(photos.glob("*.jpg"))[tar::2]):
                info = {"image_id": f"id.{min(number, 4)}", "captions": [f"text {tar} {number}", "again"]}
                writer.write({"__key__": f"{number:04d}", "jpg": path.read_bytes(), "json": info})
    index_shards(str(out), size=32, workers=1, console=Console(file=io.StringIO()))
    return out


def add(kind: str, *sets: Path | str, cache: Path, console: Console | None = None, **options: Any) -> list[ColumnHead]:
    """`shardclip column KIND SETS options`."""
    console = console or Console(file=io.StringIO())
    return make_columns(COLUMNS, Choice(kind, options), [str(s) for s in sets], cache, console)
