"""Shard sets read by sample number: checked indexes, memory-mapped tars, a checksum for every member read."""

from __future__ import annotations

import json
import resource
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from core.class_captions import labels_of_class_captions
from core.column_values import Column, open_heads, united_classes
from core.columns import FOLDER, HEAD_NAME, TEXT, ColumnFile, column_names, load_head, unfinished_columns
from core.errors import DamagedError, ManifestError
from core.manifest import ImageSpec, Manifest, ShardEntry, TextEncoderSpec, load_manifest, mended_by
from core.mapped import mapped
from core.shard_index import IMAGE, JSON, NPY, TXT, ShardIndex, checksum, decode_index, samples_fingerprint, split_name
from core.storage import exists, fetch, is_local, join, sha256_of, size


class DamagedSampleError(DamagedError):
    """A member's bytes are not those that were written; `place` says which file and sample, for people."""

    def __init__(self, place: str, member: str) -> None:
        super().__init__(place, member)
        self.place, self.member = place, member

    def __str__(self) -> str:
        return (
            f"{self.place}: the {self.member} is damaged. Restore the shard, or do what `shardclip verify` says of it."
        )


class ShardSet:
    """One or several shard sets as one sequence of samples 0..len-1, in the manifests' order.

    Cheap to pickle: a copy in another process opens files when it first needs them.
    """

    def __init__(
        self,
        urls: tuple[str, ...],
        manifests: tuple[Manifest, ...],
        cache_dir: Path | None,
        verified: bool,
        text: str = "",
    ) -> None:
        self.urls, self.manifests, self.cache_dir = urls, manifests, cache_dir
        self._text = text  # the column of the caption embeddings; "": those stored in the shards
        self._shards: list[tuple[str, ShardEntry]] = [
            (url, entry) for url, manifest in zip(urls, manifests) for entry in manifest.shards
        ]
        self.shard_sizes = np.array([entry.num_samples for _, entry in self._shards], dtype=np.int64)
        self._ends = np.cumsum(self.shard_sizes)
        self._set_ends = np.cumsum(self.set_sizes)
        self._verified = verified
        self._indexes: dict[int, ShardIndex] = {}
        self._maps: OrderedDict[str, memoryview] = OrderedDict()
        self._columns: dict[str, Column] = {}

    @classmethod
    def open(cls, urls: str | Sequence[str], cache_dir: Path | None = None, text: str | None = None) -> ShardSet:
        """Read the manifests, verify every index and every shard's size.

        Several sets must have pictures of one size and fit; each picture is decoded by its own set's codec.

        Args:
            text: the column whose caption embeddings are read; "": those stored in the shards; None: the stored ones,
                or the only text column of a set that has none.

        Raises:
            ManifestError: missing, damaged, or sets that do not fit together.
            DamagedError: an index or a shard is not the one the manifest names.
        """
        urls = (urls,) if isinstance(urls, str) else tuple(urls)
        manifests = tuple(load_manifest(url) for url in urls)
        for url, manifest in zip(urls, manifests):
            _expect_like(urls[0], manifests[0].image, url, manifest.image)
        shard_set = cls(urls, manifests, cache_dir, verified=False)
        for shard in range(len(shard_set._shards)):
            shard_set._index(shard)
            shard_set._check_sizes(shard)
        shard_set._verified = True
        shard_set._text = _only_text_column(urls, manifests) if text is None else text
        if shard_set._text:
            head = shard_set.column(shard_set._text).head
            if head.kind != TEXT:
                texts = ", ".join(_text_columns(urls[0])) or "none (`shardclip column text` makes one)"
                raise ManifestError(
                    f"{urls[0]}: column '{head.name}' is {head.kind}, caption embeddings are needed. "
                    f"Text columns: {texts}."
                )
        else:
            _expect_same_encoder(urls, manifests)
        return shard_set

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getstate__(self) -> tuple[tuple[str, ...], tuple[Manifest, ...], Path | None, bool, str]:
        return self.urls, self.manifests, self.cache_dir, self._verified, self._text

    def __setstate__(self, state: tuple[tuple[str, ...], tuple[Manifest, ...], Path | None, bool, str]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    @property
    def image(self) -> ImageSpec:
        """How the images are stored."""
        return self.manifests[0].image

    @property
    def text(self) -> str:
        """The column of the caption embeddings; "" where those stored in the shards are read."""
        return self._text

    @property
    def text_encoder(self) -> TextEncoderSpec | None:
        """Which encoder made the caption embeddings; None for an adopted set without any."""
        return self.column(self._text).head.text_encoder if self._text else self.manifests[0].text_encoder

    @property
    def embed_dim(self) -> int:
        """Width of the caption embeddings.

        Raises:
            ManifestError: the set has none, or several text columns and none was named.
        """
        return self.expect_text("Name one of them in data.text.").embed_dim

    def expect_text(self, name_one: str) -> TextEncoderSpec:
        """Which encoder made the caption embeddings.

        Args:
            name_one: what to do where there are several text columns.

        Raises:
            ManifestError: there are none, or several text columns and none was named.
        """
        if self.text_encoder is None:
            if names := _text_columns(self.urls[0]):
                raise ManifestError(f"{self.urls[0]}: has several text columns ({', '.join(names)}). {name_one}")
            torn = [join(FOLDER, name, HEAD_NAME) for name in unfinished_columns(self.urls[0])]
            hint = f" ({', '.join(torn)} is missing)" if torn else ""
            raise ManifestError(f"{self.urls[0]}: has no caption embeddings{hint}. Add them with `shardclip embed`.")
        return self.text_encoder

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, where the sources have labels; those of several sets are united by name."""
        return united_classes([manifest.classes for manifest in self.manifests])

    @property
    def set_sizes(self) -> np.ndarray:
        """`(sets,)` samples in each set."""
        return np.array([manifest.num_samples for manifest in self.manifests], dtype=np.int64)

    @cached_property
    def fingerprints(self) -> tuple[str, ...]:
        """Identity of each set's samples and their order; of older sets computed from the indexes."""
        return tuple(
            manifest.fingerprint or samples_fingerprint(self._index(shard) for shard in self._shards_of(number))
            for number, manifest in enumerate(self.manifests)
        )

    @property
    def fingerprint(self) -> str:
        """Identity of the samples and their order."""
        return "+".join(self.fingerprints)

    def column(self, name: str) -> Column:
        """A column that every set has; checked against the sets' samples.

        Raises:
            ManifestError: a set lacks it, or it is of other samples, or they do not fit together.
        """
        if name not in self._columns:
            heads = open_heads(self.urls, self.fingerprints, name)
            self._columns[name] = Column(self.urls, heads, self.manifests, self._column_file)
        return self._columns[name]

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

    @cached_property
    def class_captions(self) -> dict[int, Column]:
        """Of the sets whose captions were made from class names: number of the set -> the column of its own labels.

        Raises:
            ManifestError: such a set lacks the column.
        """
        return labels_of_class_captions(self)

    def alone(self, number: int) -> ShardSet:
        """One of the sets by itself."""
        return ShardSet((self.urls[number],), (self.manifests[number],), self.cache_dir, verified=True)

    def embeddings(self, sample: int) -> np.ndarray:
        """Caption embeddings `(C, E)` float16, unit length: the stored ones, or those of the column named at `open`.

        Raises:
            DamagedSampleError: the stored ones are damaged.
            DamagedError: the column's file is.
        """
        if self._text:
            return self.column(self._text).of_captions(sample)
        try:
            return decode_embeddings(self.member(sample, NPY))
        except DamagedSampleError:
            raise
        except DamagedError:  # whole, but no embeddings
            raise DamagedSampleError(self.describe(sample, NPY), NPY) from None

    @property
    def most_embeddings(self) -> int:
        """The most captions that a sample has, by their embeddings; of stored ones only the longest are read."""
        if self._text:
            return self.column(self._text).most_captions
        longest = 0
        for shard, end in enumerate(self._ends.tolist()):
            index = self._index(shard)
            row = int(index.records[:, index.column(NPY)]["length"].argmax())
            longest = max(longest, len(self.embeddings(end - int(self.shard_sizes[shard]) + row)))
        return longest

    def image_spec(self, sample: int) -> ImageSpec:
        """How the sample's picture is stored."""
        if len(self.manifests) == 1:
            return self.manifests[0].image
        return self.manifests[int(np.searchsorted(self._set_ends, sample, side="right"))].image

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

    def member_names(self, sample: int) -> list[str]:
        """The members that lie in the sample's own tar, present or not."""
        shard, _ = self.locate(sample)
        tar = self._shards[shard][1].name
        return [member.name for member in self._index(shard).members if member.file == tar]

    def _has(self, sample: int, name: str) -> bool:
        return name in [m.name for m in self._index(self.locate(sample)[0]).members]

    def _shards_of(self, number: int) -> range:
        """The shards of one of the sets."""
        ends = np.cumsum([0, *(len(manifest.shards) for manifest in self.manifests)])
        return range(ends[number], ends[number + 1])

    def _column_file(self, number: int, entry: ColumnFile, name: str) -> memoryview:
        path = fetch(join(self.urls[number], name), self.cache_dir, entry.sha256)
        if not path.exists():
            raise DamagedError(f"{path}: is missing. Delete the column and make it again.")
        return mapped(path)

    def _index(self, shard: int) -> ShardIndex:
        if shard not in self._indexes:
            url, entry = self._shards[shard]
            path = fetch(join(url, entry.index_name), self.cache_dir, entry.index_sha256)
            if not path.exists():
                raise DamagedError(f"{path}: the manifest names it, it is missing. {self._mended_by(url)}")
            if not self._verified and sha256_of(path) != entry.index_sha256:
                raise DamagedError(f"{path}: the index is not the one the manifest names. {self._mended_by(url)}")
            self._indexes[shard] = decode_index(path.read_bytes(), str(path))
        return self._indexes[shard]

    def _check_sizes(self, shard: int) -> None:
        url, entry = self._shards[shard]
        files = [(entry.name, entry.bytes)]
        if entry.embeddings:
            files.append((entry.embeddings.name, entry.embeddings.bytes))
        for name, expected in files:
            path = join(url, name)
            if is_local(path) and not exists(path):
                raise DamagedError(f"{path}: the manifest names it, it is missing. {self._mended_by(url)}")
            if is_local(path) and (found := size(path)) != expected:
                raise DamagedError(f"{path}: has {found} bytes, the manifest says {expected}. {self._mended_by(url)}")

    def _mended_by(self, url: str) -> str:
        return mended_by(url, self.manifests[self.urls.index(url)])

    def _map(self, shard: int, file: str) -> memoryview:
        url, entry = self._shards[shard]
        name = join(url, file)
        if name in self._maps:
            self._maps.move_to_end(name)
            return self._maps[name]
        sidecar = entry.embeddings
        sha256 = sidecar.sha256 if sidecar and file == sidecar.name else entry.sha256
        path = fetch(name, self.cache_dir, sha256)
        self._maps[name] = mapped(path)
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


def _expect_like(first_url: str, first: ImageSpec, url: str, image: ImageSpec) -> None:
    if (image.size, image.fit) != (first.size, first.fit):
        raise ManifestError(
            f"{url}: its images are {_spoken(image)}, those of {first_url} {_spoken(first)}: a batch has one kind. "
            "Build both with the same image.size and image.fit."
        )


def _spoken(image: ImageSpec) -> str:
    return f"{image.size} px by {image.fit}"


def _expect_same_encoder(urls: Sequence[str], manifests: Sequence[Manifest]) -> None:
    for url, manifest in zip(urls, manifests):
        if manifest.text_encoder != manifests[0].text_encoder:
            raise ManifestError(
                f"{url}: its text encoder is {manifest.text_encoder}, that of {urls[0]} {manifests[0].text_encoder}. "
                "Give both a column of one encoder (`shardclip embed`) and name it in data.text."
            )


def _only_text_column(urls: Sequence[str], manifests: Sequence[Manifest]) -> str:
    """The text column of sets that store no embeddings, if there is just one; else ""."""
    names = [] if any(manifest.text_encoder for manifest in manifests) else _text_columns(urls[0])
    return names[0] if len(names) == 1 else ""


def _text_columns(url: str) -> list[str]:
    return [name for name in column_names(url) if load_head(url, name).kind == TEXT]
