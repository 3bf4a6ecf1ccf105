"""Sets of others' tars as an earlier version embedded them: NAME.emb beside each tar, named by index and manifest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from core.manifest import Manifest, ShardEntry, SidecarEntry, TextEncoderSpec, load_manifest, save_manifest
from core.shard_index import NPY, RECORD, Member, ShardIndex, checksum, encode_index, read_index
from core.shard_set import ShardSet
from core.storage import publish_bytes
from shard_builder.build_state import load_build, save_build
from shard_builder.fingerprint import fingerprint_of
from shard_builder.writer import npy_bytes


def add_sidecars(folder: Path, encoder: TextEncoderSpec, embed: Callable[[Sequence[str]], np.ndarray]) -> Manifest:
    """Give an indexed folder embeddings, rewriting its indexes, build.json and manifest."""
    url = str(folder)
    manifest, shard_set = load_manifest(url), ShardSet.open(url)
    of_sample = iter([embed(shard_set.captions(sample)) for sample in range(len(shard_set))])
    entries = []
    for entry in manifest.shards:
        blobs = [npy_bytes(next(of_sample)) for _ in range(entry.num_samples)]
        entries.append(_with_sidecar(folder, entry, blobs))
    recipe = {**load_build(url)["recipe"], "text_encoder": asdict(encoder)}
    manifest = replace(
        manifest, shards=tuple(entries), text_encoder=encoder, build_fingerprint=fingerprint_of(recipe), fingerprint=""
    )
    save_build(url, recipe, load_build(url)["files"])
    save_manifest(manifest, url)
    return manifest


def _with_sidecar(folder: Path, entry: ShardEntry, blobs: list[bytes]) -> ShardEntry:
    name = entry.name.removesuffix(".tar") + ".emb"
    sha256 = publish_bytes(b"".join(blobs), folder / name)
    index = read_index(folder / entry.index_name)
    offsets = np.cumsum([0, *map(len, blobs)])
    column = np.array([(o, checksum(b), len(b)) for o, b in zip(offsets, blobs)], dtype=RECORD)
    new = ShardIndex((*index.members, Member(NPY, name)), np.column_stack([index.records, column]), index.image_ids)
    index_sha256 = publish_bytes(encode_index(new), folder / entry.index_name)
    return replace(entry, index_sha256=index_sha256, embeddings=SidecarEntry(name, int(offsets[-1]), sha256))
