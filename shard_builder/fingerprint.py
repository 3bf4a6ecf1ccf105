"""What decides the bytes of a build, in words and as a hash; equal fingerprints promise equal bytes. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from core.image import constants
from core.manifest import TextEncoderSpec
from shard_builder.records import Record, Skip

LAYOUT = 2  # raise it when the same recipe gives other bytes than before
# What `core.image.constants` was while recipes did not name it. A record of the past: never edit it.
UNNAMED_CONSTANTS = {
    "filter": "BICUBIC",
    "draft_factor": 2,
    "pad_colour": [127, 127, 127],
    "min_side": 8,
    "jpeg_subsampling": "4:2:0",
    "jpeg_optimize": False,
    "jpeg_progressive": False,
}


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
        "constants": constants(),
        "text_encoder": asdict(text_encoder),
        "inputs": {
            "images": len(records),
            "captions": sum(len(r.captions) for r in records),
            "image_bytes": sum(image_bytes),
            "skipped": len(skipped),
            "sha256": _digest(_input_lines(records, skipped, image_bytes)),
        },
    }


def inputs_hash(records: Sequence[Record], image_bytes: Sequence[int]) -> str:
    """Hash of the records of one shard, in its order, by which it is known after others were mended."""
    return _digest(_input_lines(records, (), image_bytes))


def fingerprint_of(recipe: Mapping[str, Any]) -> str:
    """Hash of a recipe; equal fingerprints promise equal bytes."""
    return _digest([recipe])


def named_in_full(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe of any age with all that recipes name today, so that two of them can be compared."""
    return {"constants": UNNAMED_CONSTANTS, **recipe}


def fingerprints_of(recipe: Mapping[str, Any]) -> set[str]:
    """Every hash that a set of this very recipe may have: today's, and that of before recipes named the constants."""
    unnamed = {key: value for key, value in recipe.items() if key != "constants"}
    return {fingerprint_of(known) for known in (recipe, unnamed) if named_in_full(known) == recipe}


def _input_lines(records: Sequence[Record], skipped: Sequence[Skip], image_bytes: Sequence[int]) -> Iterator[Any]:
    for record, size in zip(records, image_bytes, strict=True):
        synonyms = [{"synonyms": record.synonyms}] if record.synonyms else []
        yield [record.source, record.image_id, size, record.label, *record.captions, *synonyms]
    yield from sorted([s.source, s.image_id, s.reason] for s in skipped)


def _digest(values: Any) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(json.dumps(value, sort_keys=True, ensure_ascii=True).encode() + b"\n")
    return digest.hexdigest()
