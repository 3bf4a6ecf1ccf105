"""What every loader reads: photographs, cropped to 256 px once by our builder, as JPEG and as raw pixels.

INPUT/jpeg, INPUT/raw    shard sets of the same photographs
INPUT/<peer>             the same JPEG bytes (FFCV's raw: the same pixels), as the peer stores them
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from rich.console import Console

from benchmarks.measure import ROOT
from core.config import Choice
from core.shard_index import IMAGE
from core.shard_set import ShardSet

PHOTOS = Path(os.environ.get("SHARDCLIP_DATA", ROOT.parent / "shared" / "data")) / "flickr8k"
STORED_SIZE, NUM_SCENES = 256, 1500
_FINGERPRINT = "fingerprint"  # of the set that a peer's form was made of


class Sample(NamedTuple):
    """What peers are given to store."""

    jpeg: bytes
    caption: str


def build_inputs(folder: Path, copies: int, codecs: tuple[Literal["jpeg", "raw"], ...] = ("jpeg", "raw")) -> str:
    """Build the shard sets, each photograph `copies` times; returns what they show. What is there already is kept."""
    from shard_builder.build import build_shards
    from shard_builder.config import BuildConfig, ImageConfig
    from shard_builder.readers.flickr8k import read_flickr8k
    from shard_builder.readers.scenes import read_scenes

    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if PHOTOS.is_dir():
        what = "Flickr8k photographs"
        read = read_flickr8k("train", images=str(PHOTOS / "Images"), captions=str(PHOTOS / "captions.txt"))
    else:
        what = f"drawn scenes (no photographs at {PHOTOS})"
        read = read_scenes("train", folder=str(folder / "scenes"), count=NUM_SCENES, size=320)
    lines = []
    for copy in range(copies):
        (folder / f"copy-{copy}").mkdir(exist_ok=True)
        for record in read.records:
            link = (
                folder / f"copy-{copy}" / Path(record.image).name
            )  # a line with the same path would be the same image
            link.unlink(missing_ok=True)
            link.symlink_to(record.image)
            lines.append(json.dumps({"image": str(link), "captions": record.captions, "split": "train"}))
    (folder / "images.jsonl").write_text("\n".join(lines) + "\n")
    for codec in codecs:
        image = ImageConfig(size=STORED_SIZE, codec=codec)
        source = Choice("jsonl", {"file": str(folder / "images.jsonl")})
        build_shards(BuildConfig(source, str(folder / codec), image=image, samples_per_shard=500), Console(stderr=True))
    return f"{len(read.records):,} {what} x {copies}, stored at {STORED_SIZE} px, JPEG quality 95"


def samples(folder: Path) -> Iterator[Sample]:
    """Everything in INPUT/jpeg, in its order."""
    shard_set = ShardSet.open(str(folder / "jpeg"))
    for number in range(len(shard_set)):
        yield Sample(bytes(shard_set.member(number, IMAGE)), shard_set.captions(number)[0])


def pixels(folder: Path) -> Iterator[np.ndarray]:
    """The decoded JPEGs of INPUT/jpeg, `(S, S, 3)` uint8."""
    import simplejpeg

    return (simplejpeg.decode_jpeg(sample.jpeg) for sample in samples(folder))


def stored_once(folder: Path, name: str, store: Callable[[Path], None]) -> Path:
    """The folder INPUT/`name`, which `store` fills unless it holds this very input already."""
    target, partial = folder / name, folder / f"{name}.partial"
    fingerprint = ShardSet.open(str(folder / "jpeg")).fingerprint
    if target.is_dir() and (target / _FINGERPRINT).read_text() == fingerprint:
        return target
    for old in (target, partial):
        shutil.rmtree(old, ignore_errors=True)
    partial.mkdir()
    store(partial)
    (partial / _FINGERPRINT).write_text(fingerprint)
    partial.rename(target)
    return target
