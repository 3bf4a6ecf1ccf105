"""Give a set of others' tars caption embeddings: NAME.emb beside each tar, named by its index and the manifest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import numpy as np
from rich.console import Console

from core.config import Choice
from core.errors import DamagedError, ManifestError
from core.locks import lock
from core.manifest import Manifest, ShardEntry, SidecarEntry, load_manifest, save_manifest
from core.shard_index import NPY, RECORD, Member, ShardIndex, checksum, encode_index, read_index
from core.shard_set import ShardSet
from core.storage import fetch, is_local, join, local, publish_bytes, sha256_of, sweep_partials
from shard_builder.build_state import load_build, save_build
from shard_builder.caption_cache import CaptionCache
from shard_builder.caption_embeddings import embed_with_progress, text_encoder_spec
from shard_builder.fingerprint import fingerprint_of
from shard_builder.index_tars import TarTask, index_tar
from shard_builder.progress import progress_bar
from shard_builder.writer import npy_bytes


def embed_shards(
    url: str,
    text_encoder: Choice,
    batch_size: int = 256,
    cache_dir: Path = Path("~/.cache/shardclip"),
    console: Console | None = None,
) -> Manifest:
    """Write the caption embeddings of an indexed folder into sidecars, NAME.emb, and name them in index and manifest.

    Killed in between, it leaves indexes that the manifest does not fit (readers refuse them); run it again.

    Raises:
        ManifestError: the folder is not indexed, or is a set that shardclip built.
        DamagedError: a tar is not the one that was indexed.
    """
    console = console or Console()
    cache_dir = cache_dir.expanduser()
    with _locked(url, "embed"):
        manifest = load_manifest(url)
        if manifest.image.codec != "mixed":
            raise ManifestError(f"{url}: was built by shardclip and has embeddings. Build it again for others.")
        files = load_build(url)["files"]
        manifest = replace(manifest, shards=tuple(_indexed(url, entry, cache_dir) for entry in manifest.shards))
        shard_set = ShardSet((url,), (manifest,), cache_dir, verified=True)
        with progress_bar(console, "samples", total=len(shard_set)) as show:
            captions = []
            for sample in range(len(shard_set)):
                captions.append(shard_set.captions(sample))
                show(sample + 1)
        encoder = text_encoder_spec(text_encoder)
        distinct = sorted({caption for own in captions for caption in own})
        embed_with_progress(text_encoder, encoder, distinct, cache_dir / "captions", batch_size, console)
        cache = CaptionCache(cache_dir / "captions", encoder)
        of_sample = iter(captions)
        entries = tuple(
            _write_sidecar(url, entry, [cache.lookup(own) for own in islice(of_sample, entry.num_samples)], cache_dir)
            for entry in manifest.shards
        )
        recipe = {
            "adopted": [[entry.name, entry.sha256, entry.index_sha256] for entry in entries],
            "image": asdict(manifest.image),
            "text_encoder": asdict(encoder),
        }
        manifest = replace(manifest, shards=entries, text_encoder=encoder, build_fingerprint=fingerprint_of(recipe))
        save_build(url, recipe, files)
        save_manifest(manifest, url)
    console.print(f"{manifest.num_captions:,} captions of {url} embedded by {manifest.text_encoder}")
    return manifest


def _indexed(url: str, entry: ShardEntry, cache_dir: Path) -> ShardEntry:
    """The entry, its index made again where a killed `embed` left another one than the manifest names."""
    path = fetch(join(url, entry.index_name), None if is_local(url) else cache_dir, None)
    if path.is_file() and sha256_of(path) == entry.index_sha256:
        return entry
    again = index_tar(
        TarTask(url, entry.name, url.rstrip("/").rsplit("/", 1)[-1], cache_dir, entry), lambda position: None
    ).entry
    if again is None or (again.sha256, again.num_samples) != (entry.sha256, entry.num_samples):
        raise DamagedError(f"{join(url, entry.name)}: is not the tar that was indexed. Index it again.")
    return again


def _write_sidecar(url: str, entry: ShardEntry, embeddings: Sequence[np.ndarray], cache_dir: Path) -> ShardEntry:
    name = entry.name.removesuffix(".tar") + ".emb"
    blobs = [npy_bytes(array) for array in embeddings]
    sha256 = publish_bytes(b"".join(blobs), join(url, name))
    index = read_index(fetch(join(url, entry.index_name), cache_dir, entry.index_sha256))
    kept = [column for column, member in enumerate(index.members) if member.name != NPY]
    offsets = np.cumsum([0, *map(len, blobs)])
    column = np.array([(o, checksum(b), len(b)) for o, b in zip(offsets, blobs)], dtype=RECORD)
    members = (*(index.members[c] for c in kept), Member(NPY, name))
    new = ShardIndex(members, np.column_stack([index.records[:, kept], column]), index.image_ids)
    index_sha256 = publish_bytes(encode_index(new), join(url, entry.index_name))
    return replace(entry, index_sha256=index_sha256, embeddings=SidecarEntry(name, int(offsets[-1]), sha256))


@contextmanager
def _locked(url: str, purpose: str) -> Iterator[None]:
    if not is_local(url):
        yield
        return
    with lock(local(url) / ".lock", f"{purpose} of {url}"):
        sweep_partials(local(url))
        yield
