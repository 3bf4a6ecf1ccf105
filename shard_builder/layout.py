"""The layout of a build: which image becomes which sample of which shard. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from core.seeding import permutation
from shard_builder.records import Record, Skip

KEY_DIGITS = 9


@dataclass(frozen=True)
class ShardPlan:
    """One tar to be written; sample i of it has the key `first_key + i`."""

    name: str
    first_key: int
    records: tuple[Record, ...]

    def describe(self, position: int) -> str:
        """The image at `position`, for an error message."""
        if position >= len(self.records):
            return "after its last image"
        record = self.records[position]
        return f"image {position + 1} of {len(self.records)}, '{record.image_id}' ({record.image})"


def key_of(number: int) -> str:
    """A sample's name in the tar: its planned number, never its id (WebDataset cuts names at the first dot)."""
    return f"{number:0{KEY_DIGITS}d}"


def without_repeats(records: Sequence[Record]) -> tuple[list[Record], list[Skip]]:
    """Records sorted by source and id, each id once, and a skip for each further record of an id."""
    kept: list[Record] = []
    repeats: list[Skip] = []
    for record in sorted(records, key=lambda r: (r.source, r.image_id, r.image, r.captions, r.label or "")):
        if kept and (kept[-1].source, kept[-1].image_id) == (record.source, record.image_id):
            detail = f"{record.image}: the id stands for {kept[-1].image} already"
            repeats.append(Skip(record.image_id, record.source, "repeated_id", detail))
        else:
            kept.append(record)
    return kept, repeats


def plan_shards(records: Sequence[Record], split: str, samples_per_shard: int, seed: int) -> list[ShardPlan]:
    """Deal sorted records, shuffled by `seed`, to shards of `samples_per_shard`; the last one takes the rest."""
    shuffled = [records[i] for i in permutation(len(records), seed, "shards")]
    starts = range(0, len(shuffled), samples_per_shard)
    return [
        ShardPlan(f"{split}-{number:05d}.tar", start, tuple(shuffled[start : start + samples_per_shard]))
        for number, start in enumerate(starts)
    ]
