"""A small shard set made large: its samples again and again, under new keys and image ids; no builder is needed."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from core.manifest import ShardEntry, index_name, save_manifest
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
)
from core.shard_set import ShardSet
from core.storage import sha256_of

SAMPLES_PER_SHARD = 1024
_MEMBERS = {IMAGE: "jpg", TXT: "txt", JSON: "json", NPY: "npy"}  # of a set of jpegs with stored embeddings, in order


def repeat(source: Path, target: Path, num_samples: int) -> None:
    """Write a set of `num_samples` samples into the new folder `target`: number n is sample n modulo those there are.

    Args:
        source: a set that `prepare` or the builder wrote, with jpegs and stored embeddings.
    """
    given = ShardSet.open(str(source))
    target.mkdir(parents=True)
    starts = range(0, num_samples, SAMPLES_PER_SHARD)
    shards = tuple(
        _write_shard(given, target, f"train-{number:05d}.tar", range(num_samples)[start : start + SAMPLES_PER_SHARD])
        for number, start in enumerate(starts)
    )
    manifest = replace(
        given.manifests[0], split="train", shards=shards, num_samples=num_samples, num_inputs=num_samples, skipped={},
        num_captions=sum(shard.num_captions for shard in shards), build_fingerprint="", fingerprint="",
    )  # fmt: skip
    save_manifest(manifest, str(target))


def _write_shard(given: ShardSet, target: Path, name: str, numbers: range) -> ShardEntry:
    records = np.zeros((len(numbers), len(_MEMBERS)), dtype=RECORD)
    image_ids = np.zeros(len(numbers), dtype=np.uint64)
    num_captions = 0
    with tarfile.open(target / name, "w", format=tarfile.USTAR_FORMAT) as tar:
        for row, number in enumerate(numbers):
            info = given.info(number % len(given)) | {"image_id": f"copy-{number}", "source": "repeated"}
            image_ids[row] = image_id_of(info["source"], info["image_id"])
            num_captions += len(info["captions"])
            for column, (extension, data) in enumerate(_members(given, number % len(given), info)):
                header = tarfile.TarInfo(f"{number:09d}.{extension}")
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))
                padded = -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                records[row, column] = (tar.offset - padded, checksum(data), len(data))
    index = ShardIndex(tuple(Member(member, name) for member in _MEMBERS), records, image_ids)
    (target / index_name(name)).write_bytes(encode_index(index))
    sizes = (len(numbers), num_captions, (target / name).stat().st_size)
    return ShardEntry(name, *sizes, sha256_of(target / name), sha256_of(target / index_name(name)))


def _members(given: ShardSet, sample: int, info: dict[str, object]) -> Iterator[tuple[str, bytes]]:
    for member, extension in _MEMBERS.items():
        is_info = member == JSON
        yield extension, json.dumps(info).encode() if is_info else bytes(given.member(sample, member))
