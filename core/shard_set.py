"""Shard sets read by sample number: checked indexes, memory-mapped tars, a checksum for every member read."""

from __future__ import annotations

import json
import mmap
import resource
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import DamagedError, ManifestError
from core.manifest import ImageSpec, Manifest, ShardEntry, TextEncoderSpec, index_name, load_manifest
from core.shard_index import IMAGE, JSON, NPY, TXT, ShardIndex, checksum, decode_index, split_name
from core.storage import fetch, is_local, join, sha256_of, size


class DamagedSampleError(DamagedError):
    """A member's bytes are not those that were written; `place` says which file and sample, for people."""

    def __init__(self, place: str, member: str) -> None:
        super().__init__(place, member)
        self.place, self.member = place, member

    def __str__(self) -> str:
        return f"{self.place}: the {self.member} is damaged. Restore the shard or build it again."


class ShardSet:
    """One or several shard sets as one sequence of samples 0..len-1, in the manifests' order.

    Cheap to pickle: a copy in another process opens files when it first needs them.
    """

    def __init__(
        self, urls: tuple[str, ...], manifests: tuple[Manifest, ...], cache_dir: Path | None, verified: bool
    ) -> None:
        self.urls, self.manifests, self.cache_dir = urls, manifests, cache_dir
        self._shards: list[tuple[str, ShardEntry]] = [
            (url, entry) for url, manifest in zip(urls, manifests) for entry in manifest.shards
        ]
        self.shard_sizes = np.array([entry.num_samples for _, entry in self._shards], dtype=np.int64)
        self._ends = np.cumsum(self.shard_sizes)
        self._verified = verified
        self._indexes: dict[int, ShardIndex] = {}
        self._maps: OrderedDict[str, memoryview] = OrderedDict()

    @classmethod
    def open(cls, urls: str | Sequence[str], cache_dir: Path | None = None) -> ShardSet:
        """Read the manifests, verify every index and every shard's size.

        Raises:
            ManifestError: missing, damaged, or sets that do not fit together.
            DamagedError: an index or a shard is not the one the manifest names.
        """
        urls = (urls,) if isinstance(urls, str) else tuple(urls)
        manifests = tuple(load_manifest(url) for url in urls)
        for url, manifest in zip(urls, manifests):
            _expect_like(urls[0], manifests[0], url, manifest)
        shard_set = cls(urls, manifests, cache_dir, verified=False)
        for shard in range(len(shard_set._shards)):
            shard_set._index(shard)
            shard_set._check_sizes(shard)
        shard_set._verified = True
        return shard_set

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getstate__(self) -> tuple[tuple[str, ...], tuple[Manifest, ...], Path | None, bool]:
        return self.urls, self.manifests, self.cache_dir, self._verified

    def __setstate__(self, state: tuple[tuple[str, ...], tuple[Manifest, ...], Path | None, bool]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    @property
    def image(self) -> ImageSpec:
        """How the images are stored."""
        return self.manifests[0].image

    @property
    def text_encoder(self) -> TextEncoderSpec | None:
        """Which encoder made the caption embeddings; None for an adopted set without any."""
        return self.manifests[0].text_encoder

    @property
    def embed_dim(self) -> int:
        """Width of the caption embeddings.

        Raises:
            ManifestError: the set has none.
        """
        if self.text_encoder is None:
            raise ManifestError(f"{self.urls[0]}: has no caption embeddings. Add them with `shardclip embed`.")
        return self.text_encoder.embed_dim

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, where the source has labels."""
        return self.manifests[0].classes

    @property
    def fingerprint(self) -> str:
        """Identity of the samples and their order."""
        return "+".join(manifest.fingerprint for manifest in self.manifests)

    def locate(self, sample: int) -> tuple[int, int]:
        """The shard's number and the row in it."""
        shard = int(np.searchsorted(self._ends, sample, side="right"))
        return shard, int(sample - self._ends[shard] + self.shard_sizes[shard])

    def describe(self, sample: int, member: str = IMAGE) -> str:
        """`folder/train-00000.tar: sample 000000123`, for people; the file is the one that holds the member."""
        shard, _ = self.locate(sample)
        index = self._index(shard)
        return f"{join(self._shards[shard][0], index.members[index.column(member)].file)}: sample {self.key(sample)}"

    def key(self, sample: int) -> str:
        """The sample's name in its tar."""
        shard, row = self.locate(sample)
        index = self._index(shard)
        column = index.column(IMAGE)
        offset = int(index.records[row, column]["offset"])
        header = bytes(self._map(shard, index.members[column].file)[offset - 512 : offset - 412])
        return split_name(header.rstrip(b"\0").decode(errors="replace"))[0]

    def member(self, sample: int, name: str) -> memoryview:
        """The bytes of a member, verified; empty where the sample has none.

        Raises:
            DamagedSampleError: the bytes are not those that were written; names file and sample.
        """
        shard, row = self.locate(sample)
        index = self._index(shard)
        column = index.column(name)
        record = index.records[row, column]
        offset, length = int(record["offset"]), int(record["length"])
        data = self._map(shard, index.members[column].file)[offset : offset + length]
        if length and checksum(data) != int(record["xxh3"]):
            raise DamagedSampleError(self.describe(sample, name), name)
        return data

    def image_ids(self, samples: np.ndarray) -> np.ndarray:
        """`(B,)` uint64: equal where samples show one image. Reads no tar."""
        shards = np.searchsorted(self._ends, samples, side="right")
        rows = samples - self._ends[shards] + self.shard_sizes[shards]
        pairs = zip(shards.tolist(), rows.tolist())
        return np.fromiter((self._index(s).image_ids[r] for s, r in pairs), np.uint64, len(samples))

    def embeddings(self, sample: int) -> np.ndarray:
        """Caption embeddings `(C, E)` float16, unit length."""
        return decode_embeddings(self.member(sample, NPY))

    def info(self, sample: int) -> dict[str, Any]:
        """The sample's `.json`; empty for an adopted sample without one."""
        data = self.member(sample, JSON) if self._has(sample, JSON) else memoryview(b"")
        return dict(json.loads(bytes(data))) if len(data) else {}

    def captions(self, sample: int) -> list[str]:
        """All captions of the sample."""
        info = self.info(sample)
        if info.get("captions"):
            return list(info["captions"])
        text = bytes(self.member(sample, TXT)).decode() if self._has(sample, TXT) else ""
        return [text or str(info["caption"])]

    def _has(self, sample: int, name: str) -> bool:
        return name in [m.name for m in self._index(self.locate(sample)[0]).members]

    def _index(self, shard: int) -> ShardIndex:
        if shard not in self._indexes:
            url, entry = self._shards[shard]
            path = fetch(join(url, index_name(entry.name)), self.cache_dir, entry.index_sha256)
            if not path.exists():
                raise ManifestError(f"{path}: the manifest names it, it is missing. Restore it or build the set again.")
            if not self._verified and sha256_of(path) != entry.index_sha256:
                raise DamagedError(
                    f"{path}: the index is not the one the manifest names. Restore it or build the set again."
                )
            self._indexes[shard] = decode_index(path.read_bytes(), str(path))
        return self._indexes[shard]

    def _check_sizes(self, shard: int) -> None:
        url, entry = self._shards[shard]
        files = [(entry.name, entry.bytes)]
        if entry.embeddings:
            files.append((entry.embeddings.name, entry.embeddings.bytes))
        for name, expected in files:
            path = join(url, name)
            if is_local(path) and (found := size(path)) != expected:
                remedy = "Restore it or build the set again."
                raise DamagedError(f"{path}: has {found} bytes, the manifest says {expected}. {remedy}")

    def _map(self, shard: int, file: str) -> memoryview:
        url, entry = self._shards[shard]
        name = join(url, file)
        if name in self._maps:
            self._maps.move_to_end(name)
            return self._maps[name]
        sidecar = entry.embeddings
        sha256 = sidecar.sha256 if sidecar and file == sidecar.name else entry.sha256
        path = fetch(name, self.cache_dir, sha256)
        with open(path, "rb") as opened:
            mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        self._maps[name] = memoryview(mapped)
        if len(self._maps) > resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2:
            self._maps.popitem(last=False)  # least recently used; closed when its last slice is gone
        return self._maps[name]


def decode_embeddings(data: memoryview) -> np.ndarray:
    """The array in a `.npy` of version 1.0: float16 `(C, E)`; a view, nothing is copied."""
    if bytes(data[:8]) != b"\x93NUMPY\x01\x00":
        raise DamagedError("caption embeddings: no .npy of version 1.0.")
    start = 10 + int.from_bytes(data[8:10], "little")
    header = bytes(data[10:start]).decode("latin1")
    shape = header.split("'shape': (", 1)[1].split(")", 1)[0]
    captions, width = (int(part) for part in shape.split(","))
    return np.frombuffer(data, "<f2", captions * width, start).reshape(captions, width)


def _expect_like(first_url: str, first: Manifest, url: str, manifest: Manifest) -> None:
    for what, a, b in (
        ("images are", (first.image.size, first.image.codec), (manifest.image.size, manifest.image.codec)),
        ("text encoder is", str(first.text_encoder), str(manifest.text_encoder)),
    ):
        if a != b:
            raise ManifestError(f"{url}: its {what} {b}, that of {first_url} {a}. Build both with the same settings.")
