"""From opening 1,000,000 samples to the first batch: `python -m benchmarks.loader_startup INPUT [--workers N]`.

The set is synthetic: manifest and indexes are whole, its 2,000 tars are hard links to those of INPUT/jpeg. The process
is new, the files are in the page cache; importing torch is not counted, the run imports it anyway.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.loader_peers.inputs import stored_once
from benchmarks.loader_peers.timing import BATCH
from core.manifest import Manifest, ShardEntry, index_name, load_manifest, save_manifest
from core.shard_index import Member, ShardIndex, encode_index, read_index
from core.shard_set import ShardSet
from core.storage import sha256_of
from trainer.data.loader import TrainLoader

NUM_SAMPLES = 1_000_000


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("input", type=Path)
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    folder = options.input.resolve()
    enlarged = stored_once(folder, "million", lambda target: enlarge(folder / "jpeg", target, NUM_SAMPLES))
    start = time.perf_counter()
    shard_set = ShardSet.open(str(enlarged))
    opened = time.perf_counter()
    batch = next(TrainLoader(shard_set, global_batch_size=BATCH, num_workers=options.workers).epoch(0))
    first_batch = time.perf_counter()
    assert len(batch.images) == BATCH and len(shard_set) >= NUM_SAMPLES
    print(json.dumps({"open_s": opened - start, "first_batch_s": first_batch - start}))


def enlarge(source: Path, target: Path, num_samples: int) -> None:
    """Fill `target` with a set of at least `num_samples` samples that repeats the shards of `source`."""
    manifest = load_manifest(str(source))
    indexes = [read_index(source / index_name(entry.name)) for entry in manifest.shards]
    shards: list[ShardEntry] = []
    total = 0
    while total < num_samples:
        number = len(shards) % len(indexes)
        shards.append(_repeat(manifest, number, indexes[number], len(shards), source, target))
        total += shards[-1].num_samples
    captions = sum(shard.num_captions for shard in shards)
    repeated = replace(manifest, shards=tuple(shards), num_samples=total, num_captions=captions, num_inputs=total)
    save_manifest(replace(repeated, skipped={}, fingerprint=f"{manifest.fingerprint}-{total}"), str(target))


def _repeat(
    manifest: Manifest, number: int, index: ShardIndex, new_number: int, source: Path, target: Path
) -> ShardEntry:
    entry = manifest.shards[number]
    name = f"{manifest.split}-{new_number:05d}.tar"
    os.link(source / entry.name, target / name)
    members = tuple(Member(member.name, name) for member in index.members)
    image_ids = index.image_ids ^ np.uint64(new_number)  # other images than those of the other copies
    (target / index_name(name)).write_bytes(encode_index(ShardIndex(members, index.records, image_ids)))
    return replace(entry, name=name, index_sha256=sha256_of(target / index_name(name)))


if __name__ == "__main__":
    main()
