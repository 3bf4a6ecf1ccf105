"""Tars as others write them: webdataset's own writer, every accepted kind of sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import webdataset
from photo_folders import picture


def write_tars(folder: Path, samples: list[dict[str, Any]], per_tar: int = 4) -> Path:
    """Tars as webdataset's own writer makes them."""
    folder.mkdir()
    with webdataset.ShardWriter(str(folder / "%05d.tar"), maxcount=per_tar, verbose=0) as writer:
        for sample in samples:
            writer.write(sample)
    return folder


def others(count: int = 10) -> list[dict[str, Any]]:
    """Samples of every accepted kind: jpg, png and webp; txt, json caption, json captions."""
    samples: list[dict[str, Any]] = []
    for number in range(count):
        extension, form = [("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP")][number % 3]
        texts: dict[str, Any] = [
            {"txt": f"a text {number}"},
            {"json": {"caption": f"one caption {number}", "url": f"http://x/{number % 5}", "width": 9}},
            {"json": {"captions": [f"first {number}", f"second {number}"], "image_id": f"id.{number}"}, "txt": "other"},
        ][number // 2 % 3]
        samples.append({"__key__": f"shop/item_{number}", extension: picture(number, (40 + number, 30), form), **texts})
    return samples


def add_tar(folder: Path, name: str = "00003.tar") -> None:
    """One more tar, of one sample."""
    extra = write_tars(folder.with_name("extra"), [{"__key__": "new", "jpg": picture(99, (30, 30)), "txt": "new"}])
    (extra / "00000.tar").rename(folder / name)
    extra.rmdir()
