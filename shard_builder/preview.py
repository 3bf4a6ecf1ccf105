"""Look into any shard set: a picture of some samples and a table of their captions."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from core.errors import DataError
from core.seeding import permutation
from core.shard_set import ShardSet
from core.storage import publish_bytes
from shard_builder.contact_sheet import contains, draw_sheet, encode_sheet, summary_of, tile_of


def preview(
    url: str,
    out: Path,
    count: int = 24,
    seed: int = 0,
    query: str | None = None,
    cache_dir: Path | None = None,
    console: Console | None = None,
) -> list[int]:
    """Draw random samples into the picture `out` (.png or .jpg) and print their captions; returns their numbers.

    Args:
        query: only samples of which a caption contains this text, in any case.

    Raises:
        DataError: no sample has the text.
    """
    console = console or Console()
    shard_set = ShardSet.open(url, cache_dir)
    samples = list(islice(_matching(shard_set, seed, query), count))
    if not samples:
        raise DataError(f"{url}: no caption contains '{query}'. Try a shorter word.")
    title = url.rstrip("/").rsplit("/", 1)[-1] + (f"   “{query}”" if query else "")
    tiles = [tile_of(shard_set, sample, query or "") for sample in samples]
    sheet = draw_sheet(tiles, title, summary_of(shard_set.manifests[0]))
    publish_bytes(encode_sheet(sheet, "JPEG" if out.suffix.lower() in (".jpg", ".jpeg") else "PNG"), out)
    console.print(_caption_table(shard_set, samples))
    console.print(f"{len(samples)} samples drawn in {out}")
    return samples


def _matching(shard_set: ShardSet, seed: int, query: str | None) -> Iterator[int]:
    for sample in permutation(len(shard_set), seed, "preview").tolist():
        if query is None or any(contains(caption, query) for caption in shard_set.captions(sample)):
            yield sample


def _caption_table(shard_set: ShardSet, samples: list[int]) -> Table:
    table = Table("sample", "original", "captions", show_lines=True)
    for sample in samples:
        info = shard_set.info(sample)
        size = f"{info['width']} x {info['height']}" if {"width", "height"} <= info.keys() else ""
        name = f"{shard_set.key(sample)}\n{info.get('image_id', '')}"
        table.add_row(escape(name), size, escape("\n".join(shard_set.captions(sample))))
    return table
