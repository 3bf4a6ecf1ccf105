"""The webdataset library over our shards: for people who stay with its pipelines, and to check sets against it.

The only file that imports it. `import webdataset` costs a second and may load torch, so it waits until it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import DamagedError

if TYPE_CHECKING:
    from webdataset import WebDataset

KEY = "__key__"


def pipeline(tars: Sequence[Path], *, shuffle: int, seed: int, decode: str | None) -> WebDataset:
    """Its own pipeline: tars split over nodes and workers, shuffled, read, decoded; samples are dicts by extension.

    Args:
        shuffle: samples in the buffer that they are drawn from, the tars in random order; 0: as they lie on disk.
        seed: of the order, which is another one each epoch; in worker processes torch's seed joins in.
        decode: how pictures are decoded, in its words: pil, rgb8, rgb, torchrgb, ...; None leaves all members as bytes.
    """
    import webdataset

    share = webdataset.split_by_worker
    dataset = webdataset.WebDataset(
        [str(tar) for tar in tars],
        shardshuffle=False,  # `share` does it
        nodesplitter=_node_share(),
        workersplitter=_ShuffledShare(share, _Shuffle(len(tars), seed)) if shuffle else share,
    )
    if shuffle:
        dataset = dataset.compose(_Shuffle(shuffle, seed))
    return dataset.decode(decode, handler=_raise_named) if decode else dataset


def _raise_named(error: Exception) -> bool:
    """In place of the library's own error, which has no message.

    Raises:
        DamagedError: with the tar and the sample.
    """
    import webdataset

    if not isinstance(error, webdataset.autodecode.DecodingError):
        raise error
    raise DamagedError(
        f"{error.url}: sample {error.key}: its {error.k} cannot be decoded ({error.__cause__}). To pass such "
        "samples over: webdataset(decode=None) and the library's own decode(..., handler=webdataset.warn_and_continue)."
    ) from error


@dataclass
class _Shuffle:
    """A stage that gives every epoch another order, in worker processes too.

    The library's own `detshuffle` counts epochs in the process that reads. Workers are copies made anew for every epoch
    and would begin to count each time, so there torch's seed of the worker joins in: it is another one each time the
    DataLoader is gone through, and follows from `torch.manual_seed`. Workers that stay alive keep theirs, and count.
    """

    size: int  # of the buffer
    seed: int
    epoch: int = -1

    def __call__(self, source: Iterable[Any]) -> Iterator[Any]:
        import webdataset
        from torch.utils.data import get_worker_info

        worker = get_worker_info()
        stage = webdataset.detshuffle(self.size, seed=self.seed + (worker.seed if worker else 0), epoch=self.epoch)
        order: Iterator[Any] = stage.run(iter(source))
        self.epoch = stage.epoch
        return order


@dataclass
class _ShuffledShare:
    """A worker's share of the tars, shuffled once it is known: workers need not agree on an order."""

    share: Callable[[Iterable[Any]], Iterable[Any]]
    shuffle: _Shuffle

    def __call__(self, tars: Iterable[Any]) -> Iterator[Any]:
        return self.shuffle(self.share(tars))


def _node_share() -> Callable[..., Any]:
    """This rank's share of the tars. Worker processes that are not forked would not know the rank: it is asked now."""
    import webdataset

    rank, world_size, _, _ = webdataset.utils.pytorch_worker_info()
    return partial(_share, rank=rank, world_size=world_size) if world_size > 1 else webdataset.split_by_node


def _share(tars: Iterable[Any], rank: int, world_size: int) -> Iterator[Any]:
    return islice(tars, rank, None, world_size)


def raw_samples(tar: Path) -> Iterator[dict[str, Any]]:
    """Every sample of a tar, as the library groups and names its members: extension -> bytes, and `KEY`."""
    return iter(pipeline([tar], shuffle=0, seed=0, decode=None))


def decoded(sample: dict[str, Any], picture: str) -> dict[str, Any]:
    """The sample with the library's own decoders: `picture` for images, its usual ones for all else."""
    import webdataset

    decoder = webdataset.Decoder([webdataset.imagehandler(picture)])
    result: dict[str, Any] = decoder(dict(sample))
    return result
