"""A shard set from Python: its samples, captions and vectors; a torch loader; the webdataset library's own pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from core.errors import ConfigError, DataError
from core.image import ImageError, decode_into
from core.shard_index import IMAGE
from core.shard_set import ShardSet
from core.storage import fetch, join
from core.webdataset_library import pipeline

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from core.webdataset_library import WebDataset

Transform = Callable[[Image.Image], Any]


def open_shards(
    shards: str | Path | Sequence[str | Path], *, text: str | None = None, cache_dir: str | Path | None = None
) -> Shards:
    """Shard sets, read by sample number; indexes and sizes are checked now, every member's hash when it is read.

    Args:
        shards: a folder or URL, or several: their samples follow each other.
        text: the column whose caption vectors are read; None: the stored ones, or the only text column there is.
        cache_dir: local disk for the shards of remote sets.

    Raises:
        ManifestError: no set is there, or several do not fit together.
        DamagedError: an index or a shard is not the one that the manifest names.
    """
    urls = [shards] if isinstance(shards, str | Path) else list(shards)
    cache = None if cache_dir is None else Path(cache_dir)
    return Shards(ShardSet.open([str(url) for url in urls], cache, text=text))


@dataclass(frozen=True, eq=False)
class Sample:
    """One sample.

    Attributes:
        number: in the set, from 0.
        key: its name in the tar.
        image: `(S, S)` RGB, as stored.
        captions: all C of them.
        vectors: `(C, E)` float32, unit length to the precision of float16: the captions' stored embeddings; None where
            the set has none.
        info: what its `.json` says: `image_id`, `source`, `label`, `width`, ...
    """

    number: int
    key: str
    image: Image.Image
    captions: list[str]
    vectors: np.ndarray | None
    info: dict[str, Any]


class Shards(Sequence[Sample]):
    """Samples 0 to len-1 of one or several sets, and so a map-style dataset of torch; `open_shards` makes it."""

    def __init__(self, shard_set: ShardSet) -> None:
        self._set = shard_set

    def __len__(self) -> int:
        return len(self._set)

    def __getitem__(self, number: Any) -> Any:
        """A sample; of a slice, a list of them.

        Raises:
            IndexError: there is no such sample.
            DamagedError: its bytes are not those that were written.
            DataError: its picture cannot be decoded.
        """
        if isinstance(number, slice):
            return [self[n] for n in range(*number.indices(len(self)))]
        place = self._place(number)
        return Sample(
            place,
            self._set.key(place),
            self.image(place),
            self.captions(place),
            self.vectors(place) if self.has_vectors else None,
            self._set.info(place),
        )

    def __repr__(self) -> str:
        image, encoder = self._set.image, self._set.text_encoder
        return f"Shards({', '.join(self._set.urls)}: {len(self):,} samples of {image.size} px, vectors by {encoder})"

    @property
    def has_vectors(self) -> bool:
        """Whether captions have vectors."""
        return self._set.text_encoder is not None

    def image(self, number: int) -> Image.Image:
        """The picture of a sample, RGB, `(S, S)`; others' sets are fitted as they are in training.

        Raises:
            DamagedError: its bytes are not those that were written.
            DataError: they are, and cannot be decoded: of tars that others wrote.
        """
        place = self._place(number)
        spec = self._set.image_spec(place)
        pixels = np.empty((spec.size, spec.size, 3), np.uint8)
        try:
            decode_into(self._set.member(place, IMAGE), spec, pixels)
        except ImageError as error:
            raise DataError(
                f"{self._set.describe(place)}: its picture cannot be decoded ({error}). Pass it over; "
                "`shardclip verify` names all such samples of a set."
            ) from error
        return Image.fromarray(pixels)

    def captions(self, number: int) -> list[str]:
        """The C captions of a sample."""
        return self._set.captions(self._place(number))

    def vectors(self, number: int) -> np.ndarray:
        """Vectors `(C, E)` float32 of a sample's captions, as they are stored (in float16).

        Raises:
            ManifestError: the set has none.
        """
        self._set.expect_text("Name one of them: open_shards(..., text=...).")
        return self._set.embeddings(self._place(number)).astype(np.float32)

    def loader(
        self, batch_size: int, *, transform: Transform | None = None, **options: Any
    ) -> DataLoader[Mapping[str, Any]]:
        """A `torch.utils.data.DataLoader`, for loops of your own; `shardclip train` has a faster one.

        Args:
            transform: a picture `(S, S)` RGB to what is stacked, as torchvision's; None: `(3, S, S)` uint8.
            options: of the DataLoader: `shuffle`, `num_workers`, `sampler` (a DistributedSampler over this object), ...

        Returns:
            batches: `images` `(B, 3, S, S)` uint8, or what `transform` gives, stacked; `captions`, B lists of texts;
            `vectors`, B arrays `(C, E)`, where the set has them; `samples` `(B,)` int64.
        """
        from torch.utils.data import DataLoader

        from shardclip.batches import Collate

        return DataLoader(self, batch_size, collate_fn=Collate(transform), **options)  # type: ignore[arg-type]

    def webdataset(self, *, shuffle: int = 0, seed: int = 0, decode: str | None = "pil") -> WebDataset:
        """The webdataset library's own pipeline over the tars: split by node and worker, decoded, to be chained on.

        `for sample in shards.webdataset(): sample["jpg"], sample["txt"], sample["json"], sample["npy"]`. Nothing is
        checked against the hashes on this way, and of remote sets the tars are copied into `cache_dir` first. In a
        distributed program call it once the process group is open.

        Args:
            shuffle: samples in the shuffle buffer, the tars in random order too; 0: as they lie on disk.
            seed: of the order.
            decode: of pictures, in the library's words: pil, rgb8, torchrgb, ...; None: all members stay bytes.

        Raises:
            ConfigError: shuffle is negative.
            StorageError: a remote set without `cache_dir`.
            DamagedError: while it is read: a picture cannot be decoded; names tar and sample.
        """
        if shuffle < 0:
            raise ConfigError(f"shuffle is {shuffle}: give a number of samples, or 0 for none.")
        return pipeline(self.tars(), shuffle=shuffle, seed=seed, decode=decode)

    def tars(self) -> list[Path]:
        """The tars on a local disk, in the order of the samples."""
        entries = [(url, entry) for url, m in zip(self._set.urls, self._set.manifests) for entry in m.shards]
        return [fetch(join(url, entry.name), self._set.cache_dir, entry.sha256) for url, entry in entries]

    def __iter__(self) -> Iterator[Sample]:
        return (self[number] for number in range(len(self)))

    def _place(self, number: int) -> int:
        if not -len(self) <= number < len(self):
            raise IndexError(f"sample {number}: there are {len(self):,}, numbered from 0.")
        return int(number) % len(self)
