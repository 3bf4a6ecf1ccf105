"""What a recipe's source holds, put into an order that does not depend on the reader's."""

from __future__ import annotations

from dataclasses import dataclass

from core.config import Choice
from core.parts import build
from core.storage import is_local, local
from shard_builder.layout import without_repeats
from shard_builder.readers import READERS
from shard_builder.records import Record, Skip

UNKNOWN_SIZE = -1


@dataclass(frozen=True)
class Inputs:
    """The records to be built, sorted and each once, and what was left out."""

    records: list[Record]
    skipped: list[Skip]
    classes: tuple[str, ...]
    captions_from: str  # given, or of classes
    image_bytes: list[int]  # of each record's file; UNKNOWN_SIZE for remote ones, which are not asked

    @property
    def num_inputs(self) -> int:
        return len(self.records) + len(self.skipped)

    @property
    def captions(self) -> list[str]:
        """The distinct captions, sorted."""
        return sorted({caption for record in self.records for caption in record.captions})


def read_inputs(source: Choice, split: str) -> Inputs:
    """Run the reader; nothing is decoded."""
    result = build(READERS, source, "source", split=split)
    records, repeats = without_repeats(result.records)
    inputs = Inputs(
        records, [*result.skipped, *repeats], result.classes, result.captions, [_file_size(r.image) for r in records]
    )
    assert inputs.num_inputs == result.num_inputs
    return inputs


def _file_size(image: str) -> int:
    try:
        return local(image).stat().st_size if is_local(image) else UNKNOWN_SIZE
    except OSError:
        return UNKNOWN_SIZE  # gone since the reader saw it: the worker will skip and count it
