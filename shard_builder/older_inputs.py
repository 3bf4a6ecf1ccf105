"""Inputs as older versions listed them, by which their sets and unfinished builds are still known. Pure.

HEIC in class folders was `not_an_image` before it could be read: a set of then has none of those pictures.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePosixPath

from shard_builder.inputs import Inputs
from shard_builder.readers.image_folder import SOURCE
from shard_builder.records import Record, Skip

# What has become a picture since. A record of the past: never edit it.
_NO_IMAGES_ONCE = (".heic", ".heif")


def with_heic_left_out(inputs: Inputs) -> Inputs | None:
    """The inputs as they were listed before; None where nothing differs."""
    were_images = [not _is_heic_of_a_class(record) for record in inputs.records]
    if all(were_images):
        return None
    left_out = [record for record, was_image in zip(inputs.records, were_images) if not was_image]
    return replace(
        inputs,
        records=[record for record, was_image in zip(inputs.records, were_images) if was_image],
        image_bytes=[size for size, was_image in zip(inputs.image_bytes, were_images) if was_image],
        skipped=[*inputs.skipped, *(Skip(r.image_id, r.source, "not_an_image", r.image) for r in left_out)],
    )


def _is_heic_of_a_class(record: Record) -> bool:
    is_heic = PurePosixPath(record.image_id).suffix.lower() in _NO_IMAGES_ONCE
    return is_heic and record.source.startswith(f"{SOURCE}:")
