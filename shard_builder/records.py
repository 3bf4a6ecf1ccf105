"""What a reader hands to the builder: the captioned images it found, and every input it left out with the reason."""

from collections.abc import Iterable
from dataclasses import dataclass

from core.manifest import GIVEN


@dataclass(frozen=True)
class Record:
    """One image with its captions, before anything is decoded."""

    image_id: str  # unique within its source
    source: str  # data set it comes from, e.g. "coco"
    image: str  # local path or fsspec URL
    captions: tuple[str, ...]  # at least one, stripped, in the data set's own order
    label: str | None = None  # class name, where the data set has classes
    synonyms: tuple[str, ...] = ()  # other names of the class, kept in the sample's json


@dataclass(frozen=True)
class Skip:
    """One input that does not become a sample."""

    image_id: str
    source: str
    reason: str  # a key for counting: "missing_image", "no_captions", "unknown_image", ...
    detail: str  # what a person needs to find and mend it


@dataclass(frozen=True)
class ReadResult:
    """Everything a reader met: `num_inputs` is the number of records plus the number of skips."""

    records: tuple[Record, ...]
    skipped: tuple[Skip, ...]
    classes: tuple[str, ...] = ()  # sorted; empty where the data set has no classes
    captions: str = GIVEN  # or OF_CLASSES: made from class names, so that all images of a class share them

    @property
    def num_inputs(self) -> int:
        return len(self.records) + len(self.skipped)


def clean_captions(captions: Iterable[str]) -> tuple[str, ...]:
    """Captions with runs of white space made one space, in their order, empty ones left out."""
    # Crawled text holds lone surrogates (JSON "\ud83d"), which no file or tokenizer takes: they become "?".
    cleaned = (" ".join(caption.encode("utf-8", "replace").decode("utf-8").split()) for caption in captions)
    return tuple(caption for caption in cleaned if caption)
