"""Small folders of captioned pictures for the builder's tests."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from core.config import Choice
from shard_builder.config import BuildConfig, ImageConfig

NOUNS = ("dog", "boat", "girl", "hill", "train")


def write_photos(folder: Path, count: int, size: tuple[int, int] = (60, 45)) -> Path:
    """Write pictures and their captions; returns the JSON lines file, every line in split `train`."""
    folder.mkdir(parents=True)
    lines = []
    for number in range(count):
        name = f"{number:03d}.jpg"
        (folder / name).write_bytes(picture(number, (size[0] + number % 7, size[1] + number % 5)))
        captions = [f"a {NOUNS[(number + k) % 5]} beside {number % 10} trees" for k in range(1 + number % 3)]
        lines.append({"image": name, "captions": captions, "split": "train", "label": NOUNS[number % 5]})
    (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "captions.jsonl"


def quick_recipe(photos: Path, out: Path, cache: Path, **settings: Any) -> BuildConfig:
    """A build of `photos` whose text encoder takes no time: a line `fake` of the encoders' table has to name it."""
    defaults: dict[str, Any] = {
        "source": Choice("jsonl", {"file": str(photos)}),
        "out": str(out),
        "image": ImageConfig(size=32),
        "text_encoder": Choice("fake"),
        "workers": 1,
        "cache_dir": cache,
    }
    return BuildConfig(**{**defaults, **settings})


def picture(seed: int, size: tuple[int, int], form: str = "JPEG") -> bytes:
    """An encoded picture of coloured blocks, different for each seed."""
    blocks = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC).save(buffer, form)
    return buffer.getvalue()


def folder_bytes(folder: str | Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones and subfolders too: name -> bytes."""
    root = Path(folder)
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}
