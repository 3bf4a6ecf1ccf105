"""The plan of a build: which image becomes which sample of which shard, and the recipe's fingerprint. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from core.manifest import TextEncoderSpec
from core.seeding import permutation
from shard_builder.records import Record, Skip

KEY_DIGITS = 9
LAYOUT = 2  # raise it when the same recipe gives other bytes than before


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


def recipe_of(
    settings: Mapping[str, Any],
    records: Sequence[Record],
    skipped: Sequence[Skip],
    image_bytes: Sequence[int],
    imaging_library: str,
    text_encoder: TextEncoderSpec,
) -> dict[str, Any]:
    """Everything that decides the bytes of a build, in words that can be compared and shown.

    An image counts by id and file size, not by path or time: data may be moved and copied. (A picture edited without
    changing its file's size goes unnoticed; reading every file to rule that out would cost as much as building.)

    Args:
        records: sorted, as `without_repeats` gives them.
        image_bytes: size of each record's file.
    """
    return {
        "layout": LAYOUT,
        "settings": dict(settings),
        "imaging_library": imaging_library,
        "text_encoder": asdict(text_encoder),
        "inputs": {
            "images": len(records),
            "captions": sum(len(r.captions) for r in records),
            "image_bytes": sum(image_bytes),
            "skipped": len(skipped),
            "sha256": _digest(_input_lines(records, skipped, image_bytes)),
        },
    }


def fingerprint_of(recipe: Mapping[str, Any]) -> str:
    """Hash of a recipe; equal fingerprints promise equal bytes."""
    return _digest([recipe])


def _input_lines(records: Sequence[Record], skipped: Sequence[Skip], image_bytes: Sequence[int]) -> Iterator[Any]:
    for record, size in zip(records, image_bytes, strict=True):
        yield [record.source, record.image_id, size, record.label, *record.captions]
    yield from sorted([s.source, s.image_id, s.reason] for s in skipped)


def _digest(values: Any) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(json.dumps(value, sort_keys=True, ensure_ascii=True).encode() + b"\n")
    return digest.hexdigest()
