"""Look into any shard set: a picture of some samples and a table of their captions."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from core.columns import LABELS, NO_NUMBER, TOPICS, column_names, load_head
from core.errors import ConfigError, DataError
from core.seeding import permutation
from core.shard_set import ShardSet
from core.spoken import counted
from core.storage import join, publish_bytes
from shard_builder.column import column_table
from shard_builder.contact_sheet import contains, draw_sheet, encode_sheet, summary_of, tile_of
from shard_builder.cut_captions import CUT_NAME, read_cut

_MOST_LETTERS = 240  # of a caption in the table


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
        ConfigError: `out` is no name of a picture, or `count` none of samples.
        DataError: no sample has the text.
    """
    console = console or Console()
    _expect_picture(out, count)
    shard_set = ShardSet.open(url, cache_dir)
    samples = list(islice(_matching(shard_set, seed, query), count))
    if not samples:
        raise DataError(f"{url}: no caption contains '{query}'. Try a shorter word.")
    title = url.rstrip("/").rsplit("/", 1)[-1] + (f"   “{query}”" if query else "")
    marks = _marks(shard_set, samples)
    tiles = [tile_of(shard_set, sample, query or "", own) for sample, own in zip(samples, marks)]
    sheet = draw_sheet(tiles, title, summary_of(shard_set.manifests[0]))
    publish_bytes(encode_sheet(sheet, "JPEG" if out.suffix.lower() in (".jpg", ".jpeg") else "PNG"), out)
    cut = read_cut(url)
    console.print(_caption_table(shard_set, samples, marks, cut))
    if cut:
        count = shard_set.manifests[0].num_cut_captions
        console.print(
            f"[yellow]{count:,} captions[/] are longer than the text encoder takes: {escape(join(url, CUT_NAME))}"
        )
    if column_names(url):
        console.print(column_table(url))
    console.print(f"{counted(len(samples), 'sample')} drawn in {out}", markup=False)
    return samples


def _expect_picture(out: Path, count: int) -> None:
    if out.is_dir() or out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise ConfigError(f"--out is {out}: name a picture that ends in .jpg or .png.")
    if count < 1:
        raise ConfigError(f"--count is {count}: at least 1 is needed.")


def _matching(shard_set: ShardSet, seed: int, query: str | None) -> Iterator[int]:
    for sample in permutation(len(shard_set), seed, "preview").tolist():
        if query is None or any(contains(caption, query) for caption in shard_set.captions(sample)):
            yield sample


def _marks(shard_set: ShardSet, samples: list[int]) -> list[str]:
    """What labels and topics say of each sample: `dog`, `topics 17`; "" where they say nothing."""
    marks: list[list[str]] = [[] for _ in samples]
    for name in column_names(shard_set.urls[0]):
        column = shard_set.column(name) if load_head(shard_set.urls[0], name).kind in (LABELS, TOPICS) else None
        for own, number in zip(marks, column.rows(np.array(samples)).tolist() if column else []):
            if number != NO_NUMBER:
                own.append(column.classes[number] if column and column.classes else f"{name} {number}")
    return [", ".join(own) for own in marks]


def _caption_table(shard_set: ShardSet, samples: list[int], marks: list[str], cut: set[str]) -> Table:
    table = Table("sample", "original", *(["label, topic"] if any(marks) else []), "captions", show_lines=True)
    for sample, own in zip(samples, marks):
        info = shard_set.info(sample)
        size = f"{info['width']} x {info['height']}" if {"width", "height"} <= info.keys() else ""
        name = f"{shard_set.key(sample)}\n{info.get('image_id', '')}"
        mark = [escape(own)] if any(marks) else []
        captions = [_spoken(caption) + ("  (cut by the text encoder)" if caption in cut else "")
                    for caption in shard_set.captions(sample)]  # fmt: skip
        table.add_row(escape(name), size, *mark, escape("\n".join(captions)))
    return table


def _spoken(caption: str) -> str:
    """A caption, or as much of it as a table has room for."""
    return caption if len(caption) <= _MOST_LETTERS else caption[: _MOST_LETTERS - 1].rstrip() + "…"
