"""Tokens: each caption as a text tower reads it, so that a live tower needs no tokenizer in its loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from core.column_kind import ColumnPlan, ColumnWork, captions_by_shard
from core.columns import NO_NUMBER, TOKENS, ColumnValues, ShardValues
from core.errors import ConfigError, WeightsError
from core.shard_set import ShardSet
from core.text_encoders import choice_of
from core.text_encoders.encoder import TextEncoder
from shard_builder.columns.encoders import encoder_choice, load_encoder, slug_of

MIN_LENGTH = 3  # start and end of text alone say nothing


@dataclass(frozen=True)
class ShardTokens:
    """Token ids of a shard's captions, end to end."""

    ids: np.ndarray  # (sum of lengths,) int32
    lengths: np.ndarray  # (captions,)
    counts: np.ndarray  # (samples,): captions of each
    num_cut: int

    @property
    def longest(self) -> int:
        """Tokens of the longest caption."""
        return int(self.lengths.max())

    def padded(self, width: int) -> ShardValues:
        """`(captions, width)`, -1 past the end of each."""
        values = np.full((len(self.lengths), width), NO_NUMBER, "<i4")
        values[np.arange(width) < self.lengths[:, None]] = self.ids
        return ShardValues(values, self.counts)


def token_column(
    work: ColumnWork, name: str = "", encoder: str = "", model: str = "", revision: str = "", length: int = 0
) -> ColumnPlan:
    """Token ids of each caption, `<i4` `(length,)`; -1 past a caption's end.

    Args:
        name: of the column; default `tokens.MODEL`.
        encoder, model, revision: whose tokenizer; default: that of the set's own encoder.
        length: 0: the longest caption of all sets of the command, at most what the encoder takes.

    Raises:
        ConfigError: no such encoder; or it does not take `length`.
        WeightsError: its tokenizer is not on this machine.
    """
    if (model or revision) and not encoder:
        raise ConfigError("column 'tokens': model= says which one of an encoder: name that too (encoder=hf_clip).")
    text_encoder = load_encoder(encoder_choice(encoder, model, revision, "")) if encoder else _own_encoder(work)
    if length and not MIN_LENGTH <= length <= text_encoder.max_tokens:
        raise ConfigError(
            f"column 'tokens': length is {length}; {text_encoder.spec.name} takes {MIN_LENGTH} to "
            f"{text_encoder.max_tokens}, and 0 means the longest caption."
        )
    limit = length or text_encoder.max_tokens
    tokens = tokens_of(work, work.shard_set, text_encoder, limit)
    others = [] if length else [other for other in work.together if other is not work.shard_set]
    all_tokens = [*tokens, *(t for other in others for t in tokens_of(work, other, text_encoder, limit))]
    width = length or max(shard.longest for shard in all_tokens)
    figures = {
        "captions": sum(len(shard.lengths) for shard in tokens),
        "cut": sum(shard.num_cut for shard in tokens),
        "longest": max(shard.longest for shard in tokens),
    }
    return ColumnPlan(
        name=name or f"{TOKENS}.{slug_of(text_encoder.spec)}",
        kind=TOKENS,
        per="caption",
        dtype="<i4",
        shape=(width,),
        origin={"tokenizer": asdict(text_encoder.tokenizer), "length": width, "cut": figures["cut"]},
        make=lambda: ColumnValues((shard.padded(width) for shard in tokens), figures=figures),
        notes=_notes(work, figures, width),
    )


def tokens_of(work: ColumnWork, shard_set: ShardSet, encoder: TextEncoder, limit: int) -> list[ShardTokens]:
    """The tokens of every shard's captions, cut at `limit`."""
    shards = captions_by_shard(work, shard_set)
    found = []
    with work.progress("shards", len(shards)) as show:
        for number, shard in enumerate(shards):
            ids, num_cut = cut_tokens(encoder, [caption for own in shard for caption in own], limit)
            flat = np.fromiter((token for own in ids for token in own), np.int32)
            counts = np.array([len(own) for own in shard], "<i4")
            found.append(ShardTokens(flat, np.array([len(own) for own in ids]), counts, num_cut))
            show(number + 1)
    return found


def cut_tokens(encoder: TextEncoder, captions: Sequence[str], limit: int) -> tuple[list[list[int]], int]:
    """Token ids of each caption, at most `limit`, and how many captions are longer than that."""
    ids = encoder.tokenize(captions, limit + 1)  # one more, or a cut caption would look like one that fits
    long = [number for number, own in enumerate(ids) if len(own) > limit]
    for number, own in zip(long, encoder.tokenize([captions[n] for n in long], limit) if long else []):
        ids[number] = own  # cut by the tokenizer itself, which keeps the end-of-text token
    return ids, len(long)


def _own_encoder(work: ColumnWork) -> TextEncoder:
    spec = work.shard_set.text_encoder
    if spec is None:
        raise ConfigError(
            f"{work.url}: has no caption embeddings of a single encoder, so no tokenizer of its own. "
            "Name one: encoder=hf_clip."
        )
    remedy = "Name it: encoder=..., and model= with its folder."
    try:
        encoder = load_encoder(choice_of(spec))
    except WeightsError as error:
        raise WeightsError(f"{work.url}: the tokenizer of its encoder {spec.name}: {error} {remedy}") from error
    if encoder.spec != spec:
        raise WeightsError(f"{work.url}: was embedded by {spec}, here is {encoder.spec}. {remedy}")
    return encoder


def _notes(work: ColumnWork, figures: dict[str, int], width: int) -> tuple[str, ...]:
    cut = figures["cut"]
    said = f"[yellow]{cut:,} of {figures['captions']:,} captions[/] of {work.url} are cut at {width} tokens."
    return (said,) if cut else ()
