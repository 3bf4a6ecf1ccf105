"""Text: the captions' embeddings by a further frozen encoder, each distinct caption once, through the caption cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

import numpy as np

from core.column_kind import ColumnPlan, ColumnWork, captions_by_shard
from core.columns import TEXT, ColumnValues, ShardValues
from shard_builder.caption_cache import CaptionCache
from shard_builder.caption_embeddings import embed_with_progress, text_encoder_spec
from shard_builder.columns.encoders import encoder_choice, slug_of
from shard_builder.cut_captions import cut_captions


def text_column(
    work: ColumnWork,
    name: str = "",
    encoder: str = "hf_clip",
    model: str = "",
    revision: str = "",
    precision: str = "",
    batch_size: int = 256,
) -> ColumnPlan:
    """Embeddings of each caption, `<f2` `(E,)`, unit length.

    Args:
        name: of the column; default `text.MODEL`.
        encoder, model, revision, precision: which encoder (docs/text_encoders.md).
        batch_size: captions of usual length at a time.

    Raises:
        ConfigError: no such encoder or option.
        WeightsError: it is not on this machine.
    """
    choice = encoder_choice(encoder, model, revision, precision)
    spec = text_encoder_spec(choice)

    def make() -> ColumnValues:
        captions = captions_by_shard(work, work.shard_set)
        distinct = sorted({caption for shard in captions for own in shard for caption in own})
        folder = work.cache_dir / "captions"
        embed_with_progress(choice, spec, distinct, folder, batch_size, work.progress)
        cache = CaptionCache(folder, spec)
        cut = set(cut_captions(choice, distinct))
        flat = [caption for shard in captions for own in shard for caption in own]
        figures = {"captions": len(flat), "distinct": len(distinct), "cut": sum(caption in cut for caption in flat)}
        return ColumnValues(parts_of(captions, cache), figures=figures)

    return ColumnPlan(
        name=name or f"{TEXT}.{slug_of(spec)}",
        kind=TEXT,
        per="caption",
        dtype="<f2",
        shape=(spec.embed_dim,),
        origin={"text_encoder": asdict(spec)},
        make=make,
    )


def parts_of(captions: list[list[list[str]]], cache: CaptionCache) -> Iterator[ShardValues]:
    """Shard by shard, the embeddings of all captions of all samples."""
    for shard in captions:
        values = cache.lookup([caption for own in shard for caption in own]).astype("<f2")
        yield ShardValues(values, np.array([len(own) for own in shard], "<i4"))
