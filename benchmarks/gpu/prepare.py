"""The photographs that travel to the GPU: a shard set of at most 30 MB, built by the product's own builder."""

from __future__ import annotations

import tempfile
from pathlib import Path

from rich.console import Console

from core.errors import DataError

NUM_PHOTOS = 1000
STORED_SIZE, QUALITY = 256, 90  # pixels; of jpeg
MOST_BYTES = 30_000_000


def prepare(folder: Path, data: Path, num_photos: int = NUM_PHOTOS) -> int:
    """Build the set of the first `num_photos` training photographs with stored MiniLM embeddings; returns its bytes.

    Needs the packages of the builder, MiniLM among them.

    Raises:
        DataError: no photographs at `data`, or the set is too large to travel.
        ShardclipError: the builder's.
    """
    from core.config import Choice
    from shard_builder.build import build_shards
    from shard_builder.config import BuildConfig, ImageConfig

    photos = data / "flickr8k"
    if not photos.is_dir():
        raise DataError(f"{photos}: no photographs are there. Name the folder that holds flickr8k: --data FOLDER.")
    with tempfile.TemporaryDirectory() as scratch:
        names = Path(scratch) / "names.txt"
        names.write_text("\n".join((photos / "train.txt").read_text().split()[:num_photos]) + "\n")
        source = {"images": str(photos / "Images"), "captions": str(photos / "captions.txt"), "names": str(names)}
        image = ImageConfig(size=STORED_SIZE, quality=QUALITY)
        config = BuildConfig(Choice("flickr8k", source), str(folder), image=image, samples_per_shard=250)
        build_shards(config, Console(stderr=True))
    num_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if num_bytes > MOST_BYTES:
        raise DataError(
            f"{folder}: has {num_bytes / 1e6:.1f} MB, more than the {MOST_BYTES / 1e6:.0f} MB that travel. "
            "Delete it and name fewer photographs: --photos."
        )
    return num_bytes
