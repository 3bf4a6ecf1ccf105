"""Tiny shard sets for tests: random JPEGs with random unit embeddings, written with core's own index and manifest."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import simplejpeg

from core.manifest import ImageSpec, Manifest, ShardEntry, TextEncoderSpec, index_name, save_manifest
from core.shard_index import (
    IMAGE,
    JSON,
    NPY,
    RECORD,
    TXT,
    Member,
    ShardIndex,
    checksum,
    encode_index,
    image_id_of,
    scan_tar,
)
from core.storage import sha256_of


def make_shard_set(
    folder: Path,
    num_samples: int,
    size: int = 32,
    num_captions: int | Sequence[int] = 5,
    embed_dim: int = 8,
    samples_per_shard: int = 10,
    codec: str = "jpeg",
    images: Sequence[bytes] | None = None,
    split: str = "train",
    seed: int = 0,
    source: str = "test",
) -> str:
    """Write a whole shard set into `folder`; returns its url.

    Args:
        num_captions: of every image, or one number for each.
        images: encoded images to use, over and over, in place of random ones; then `size` must be theirs.
        source: sets of one source number their images alike, so that image 3 of one is image 3 of the other.
    """
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    counts = [num_captions] * num_samples if isinstance(num_captions, int) else list(num_captions)
    starts = range(0, num_samples, samples_per_shard)
    shards = []
    for number, start in enumerate(starts):
        rows = range(start, min(start + samples_per_shard, num_samples))
        samples = [
            _sample(
                row,
                images[row % len(images)] if images else _image(random, size, codec),
                counts[row],
                embed_dim,
                codec,
                source,
            )
            for row in rows
        ]
        shards.append(
            _write_shard(folder, f"{split}-{number:05d}.tar", rows, samples, sum(counts[r] for r in rows), source)
        )
    manifest = Manifest(
        split=split,
        num_samples=num_samples,
        num_captions=sum(counts),
        image=ImageSpec(size, "crop", codec, 95),
        text_encoder=TextEncoderSpec("random", "0", embed_dim, "0" * 64),
        classes=(),
        shards=tuple(shards),
        num_inputs=num_samples,
        build_fingerprint=f"test-{seed}-{num_samples}-{size}",
    )
    save_manifest(manifest, str(folder))
    return str(folder)


def damage(url: str, sample: int, member: str = IMAGE, samples_per_shard: int = 10, split: str = "train") -> None:
    """Flip one bit in the middle of a member of a sample."""
    tar = Path(url) / f"{split}-{sample // samples_per_shard:05d}.tar"
    extensions = scan_tar(tar)[sample % samples_per_shard].members
    offset, length = next(place for extension, place in extensions.items() if _logical(extension) == member)
    with open(tar, "r+b") as file:
        file.seek(offset + length // 2)
        (value,) = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([value ^ 0x10]))


def _sample(row: int, image: bytes, num_captions: int, embed_dim: int, codec: str, source: str) -> dict[str, bytes]:
    captions = [f"caption {number} of image {row}" for number in range(num_captions)]
    vectors = np.random.default_rng((1, row)).normal(size=(num_captions, embed_dim))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    embeddings = io.BytesIO()
    np.save(embeddings, vectors.astype(np.float16))
    info = {"image_id": str(row), "source": source, "captions": captions, "label": None}
    return {
        "image.npy" if codec == "raw" else "jpg": image,
        "txt": captions[0].encode(),
        "json": json.dumps(info).encode(),
        "npy": embeddings.getvalue(),
    }


def _write_shard(
    folder: Path, name: str, rows: range, samples: Sequence[dict[str, bytes]], num_captions: int, source: str
) -> ShardEntry:
    tar_path, index_path = folder / name, folder / index_name(name)
    with tarfile.open(tar_path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for row, members in zip(rows, samples):
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{row:09d}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    logical = (IMAGE, TXT, JSON, NPY)
    records = np.zeros((len(samples), len(logical)), dtype=RECORD)
    for row, (found, members) in enumerate(zip(scan_tar(tar_path), samples)):
        for extension, data in members.items():
            offset, length = found.members[extension]
            records[row, logical.index(_logical(extension))] = (offset, checksum(data), length)
    image_ids = np.array([image_id_of(source, str(row)) for row in rows], dtype=np.uint64)
    index_path.write_bytes(encode_index(ShardIndex(tuple(Member(m, name) for m in logical), records, image_ids)))
    return ShardEntry(
        name, len(samples), num_captions, tar_path.stat().st_size, sha256_of(tar_path), sha256_of(index_path)
    )


def _logical(extension: str) -> str:
    return IMAGE if extension in ("jpg", "image.npy") else extension


def _image(random: np.random.Generator, size: int, codec: str) -> bytes:
    # Few, large blocks: a picture that survives JPEG nearly unchanged and differs from every other.
    blocks = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    pixels = np.ascontiguousarray(np.kron(blocks, np.ones((-(-size // 4),) * 2 + (1,), np.uint8))[:size, :size])
    if codec == "raw":
        buffer = io.BytesIO()
        np.save(buffer, pixels)
        return buffer.getvalue()
    return bytes(simplejpeg.encode_jpeg(pixels, quality=95))
