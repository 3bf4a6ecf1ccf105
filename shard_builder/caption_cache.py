"""Caption embeddings on disk, shared by all builds: each caption is embedded once per encoder, ever.

    <folder>/<encoder>-<hash of its spec>/<hash of the content>.captions

A segment is published whole and never changes, and its name is the hash of its bytes: a killed writer leaves none,
two writers cannot collide, and damage shows when it is opened. Free of torch: image workers read it.
"""

from __future__ import annotations

import json
import re
import struct
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
import xxhash

from core.errors import DamagedError, DataError
from core.manifest import TextEncoderSpec
from core.mapped import mapped
from core.storage import PARTIAL_PREFIX, publish_bytes

SUFFIX = ".captions"
KEY = np.dtype("S16")  # 128-bit hash of a caption; numpy compares S16 as 16 bytes
_MAGIC = b"shardclip captions 1"
_HEADER = struct.Struct("<20sII4x")  # magic, captions, embed_dim
_ABANDONED_S = 3600  # no writer takes this long over one segment


class CaptionCache:
    """One encoder's embeddings; opened lazily, picklable, safe to share between processes."""

    def __init__(self, folder: Path, spec: TextEncoderSpec) -> None:
        text = json.dumps(asdict(spec), sort_keys=True)
        readable = re.sub(r"[^A-Za-z0-9]+", "-", spec.name).strip("-")[:40]
        self.spec = spec
        self.folder = Path(folder) / f"{readable}-{xxhash.xxh3_128_hexdigest(text.encode())[:16]}"
        self._root = Path(folder)
        self._segments: dict[str, np.ndarray] = {}  # name -> embeddings (n, E)
        self._keys = np.empty(0, KEY)  # of all segments, sorted
        self._places = np.empty((0, 2), np.int64)  # of each key: segment in order of opening, row

    def __reduce__(self) -> tuple[type[CaptionCache], tuple[Path, TextEncoderSpec]]:
        return CaptionCache, (self._root, self.spec)

    def missing(self, captions: Sequence[str]) -> list[str]:
        """The distinct captions that have no embedding yet, in the order of their first appearance.

        Raises:
            DamagedError: a segment is not what was written.
        """
        self._open_new_segments()
        distinct = list(dict.fromkeys(captions))
        known = self._find(_keys_of(distinct)) >= 0
        return [caption for caption, there in zip(distinct, known) if not there]

    def add(self, captions: Sequence[str], embeddings: np.ndarray) -> None:
        """Publish a segment with those of `captions` that are new.

        Args:
            embeddings: `(n, E)` float16, row i of caption i.

        Raises:
            DataError: shape or type is not the encoder's, or a value is not finite.
        """
        expected = (len(captions), self.spec.embed_dim)
        if embeddings.shape != expected or embeddings.dtype != np.float16:
            found = f"{embeddings.dtype} {embeddings.shape}"
            raise DataError(f"{self.folder}: embeddings are {found}, float16 {expected} is needed.")
        unfit = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
        if len(unfit):
            raise DataError(
                f"{self.folder}: the embedding of {captions[unfit[0]]!r} is not finite. Use precision fp32."
            )
        keys, rows = np.unique(_keys_of(captions), return_index=True)  # sorted: equal content gives equal bytes
        fresh = self._find(keys) < 0
        if fresh.any():
            self._publish(keys[fresh], embeddings[rows[fresh]])

    def lookup(self, captions: Sequence[str]) -> np.ndarray:
        """Embeddings `(n, E)` float16 in the order of `captions`.

        Raises:
            DataError: a caption has none.
            DamagedError: a segment is not what was written.
        """
        keys = _keys_of(captions)
        found = self._find(keys)
        if (found < 0).any():
            self._open_new_segments()
            found = self._find(keys)
        absent = np.flatnonzero(found < 0)
        if len(absent):
            raise DataError(
                f"{self.folder}: {len(absent)} of {len(captions)} captions have no embedding, "
                f"{captions[absent[0]]!r} for one. Embed them first."
            )
        result = np.empty((len(captions), self.spec.embed_dim), np.float16)
        segments, rows = self._places[found].T
        for number, embeddings in enumerate(self._segments.values()):
            own = segments == number
            result[own] = embeddings[rows[own]]
        return result

    def _find(self, keys: np.ndarray) -> np.ndarray:
        """Where each key stands among `_keys`; -1 where it does not."""
        if not len(self._keys):
            return np.full(len(keys), -1)
        places = np.searchsorted(self._keys, keys).clip(max=len(self._keys) - 1)
        return np.where(self._keys[places] == keys, places, -1)

    def _publish(self, keys: np.ndarray, embeddings: np.ndarray) -> None:
        header = _HEADER.pack(_MAGIC, len(keys), self.spec.embed_dim)
        data = b"".join([header, keys.tobytes(), np.ascontiguousarray(embeddings).tobytes()])
        _sweep(self.folder)
        publish_bytes(data, self.folder / f"{xxhash.xxh3_128_hexdigest(data)}{SUFFIX}")
        self._open_new_segments()

    def _open_new_segments(self) -> None:
        names = sorted(path.name for path in self.folder.glob(f"*{SUFFIX}") if path.name not in self._segments)
        if not names:
            return
        keys, places = [], []
        for name in names:
            own, embeddings = _open_segment(self.folder / name, self.spec.embed_dim)
            keys.append(own)
            places.append(np.stack([np.full(len(own), len(self._segments)), np.arange(len(own))], axis=1))
            self._segments[name] = embeddings
        # Two builds may have embedded the same caption: the values are the same, the first is taken.
        distinct, first = np.unique(np.concatenate(keys), return_index=True)
        fresh = self._find(distinct) < 0
        where = np.searchsorted(self._keys, distinct[fresh])  # merging keeps many small additions cheap
        self._keys = np.insert(self._keys, where, distinct[fresh])
        self._places = np.insert(self._places, where, np.concatenate(places)[first[fresh]], axis=0)


def _keys_of(captions: Sequence[str]) -> np.ndarray:
    digests = b"".join(xxhash.xxh3_128_digest(caption.encode("utf-8", "surrogatepass")) for caption in captions)
    return np.frombuffer(digests, KEY)


def _open_segment(path: Path, embed_dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys and memory-mapped embeddings, verified."""
    data = mapped(path)
    if xxhash.xxh3_128_hexdigest(data) != path.name.removesuffix(SUFFIX):
        raise DamagedError(f"{path}: is damaged. Delete it: its captions are embedded again.")
    magic, count, width = _HEADER.unpack_from(data)
    assert (magic, width) == (_MAGIC, embed_dim), f"{path}: another format under this name"
    start = _HEADER.size + count * KEY.itemsize
    embeddings = np.frombuffer(data[start:], np.float16).reshape(count, embed_dim)
    return np.frombuffer(data[_HEADER.size : start], KEY), embeddings


def _sweep(folder: Path) -> None:
    """Remove what killed writers left behind, but nothing that a living one may be writing."""
    for path in folder.glob(f"{PARTIAL_PREFIX}*"):
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _ABANDONED_S:
                path.unlink()
