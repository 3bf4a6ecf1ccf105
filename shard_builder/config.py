"""A build's recipe: every setting, and what is wrong with it before anything starts. Free of torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from core import parts
from core.config import Choice
from core.cores import available_cores
from core.errors import ConfigError
from core.manifest import ImageSpec
from core.text_encoders import TEXT_ENCODERS
from shard_builder.engines import ENGINES
from shard_builder.readers import READERS


@dataclass(frozen=True)
class ImageConfig:
    """How images are stored."""

    size: int = 224  # pixels, both sides
    fit: Literal["crop", "squash", "pad"] = "crop"  # the middle square, the whole distorted, or with grey rims
    codec: Literal["jpeg", "raw"] = "jpeg"  # raw: 8 times the disk, no decoding in training
    quality: int = 95  # of jpeg
    max_pixels: int = 100_000_000  # larger originals are left out before they are decoded

    def __post_init__(self) -> None:
        if not 16 <= self.size <= 4096:
            raise ConfigError(f"image.size is {self.size}: 16 to 4096 pixels are possible. Towers take 224 as a rule.")
        if not 1 <= self.quality <= 100:
            raise ConfigError(f"image.quality is {self.quality}: JPEG knows 1 to 100. 95 keeps what matters.")
        if self.max_pixels < 1:
            raise ConfigError(f"image.max_pixels is {self.max_pixels}: no image has fewer. 100000000 is usual.")

    @property
    def spec(self) -> ImageSpec:
        """What the manifest says."""
        return ImageSpec(self.size, self.fit, self.codec, self.quality)


@dataclass(frozen=True)
class BuildConfig:
    """A recipe of `shardclip build`."""

    source: Choice  # a reader and its options
    out: str  # folder or fsspec URL of the new set
    split: str = "train"  # names the shards; the reader decides what it means
    image: ImageConfig = ImageConfig()
    text_encoder: Choice = Choice("minilm")  # frozen; its caption embeddings are stored
    samples_per_shard: int = 1000  # images in a tar, the last one has what is left
    seed: int = 0  # of the order of the samples
    max_skipped: float = 0.01  # share of the inputs that may be left out
    workers: int = 0  # 0: one per core
    engine: Choice = Choice("processes")  # what runs the image work
    text_batch_size: int = 256  # captions
    check_bytes: bool = False  # of a finished set: read all of it, and write damaged shards again
    cache_dir: Path = Path("~/.cache/shardclip")  # caption embeddings, shared by all builds

    def __post_init__(self) -> None:
        parts.check(READERS, self.source, "source", given=["split"])
        parts.check(ENGINES, self.engine, "engine", given=["workers"])
        parts.check(TEXT_ENCODERS, self.text_encoder, "text_encoder")
        if not re.fullmatch(r"[A-Za-z0-9_-]+", self.split):
            raise ConfigError(f"split is '{self.split}': it names files, so letters, digits, - and _ only.")
        if self.samples_per_shard < 1:
            raise ConfigError(f"samples_per_shard is {self.samples_per_shard}: at least 1 is needed. 1000 is usual.")
        if not 0 <= self.max_skipped <= 1:
            raise ConfigError(f"max_skipped is {self.max_skipped}: it is a share, 0 to 1.")
        if self.workers < 0:
            raise ConfigError(f"workers is {self.workers}: 0 means one per core.")
        if self.text_batch_size < 1:
            raise ConfigError(f"text_batch_size is {self.text_batch_size}: at least 1 is needed. 256 is usual.")

    @property
    def num_workers(self) -> int:
        """Worker processes."""
        return self.workers or available_cores()

    @property
    def caption_cache(self) -> Path:
        """The folder of the caption embeddings."""
        return self.cache_dir.expanduser() / "captions"
