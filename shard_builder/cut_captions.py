"""Captions that are longer than the text encoder takes: it reads their beginning alone. Which, and how many."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence

from core import parts
from core.config import Choice
from core.storage import exists, join, publish_bytes, read_bytes
from core.text_encoders import TEXT_ENCODERS
from core.text_encoders.encoder import TextEncoder
from shard_builder.records import Record

CUT_NAME = "cut_captions.jsonl"
_MOST_SPECIAL = 2  # tokens that open and close a caption


def cut_captions(choice: Choice, captions: Sequence[str]) -> list[str]:
    """Those of `captions` that the encoder cuts; loads its tokenizer where one could be too long, and no weights."""
    encoder: TextEncoder = parts.build(TEXT_ENCODERS, choice, "text encoder", device="cpu")
    # A token is a byte at least, so a short caption needs no tokenizer, which would take seconds to load.
    long = [caption for caption in captions if len(caption.encode()) + _MOST_SPECIAL > encoder.max_tokens]
    tokens = encoder.tokenize(long, encoder.max_tokens + 1) if long else []
    return [caption for caption, own in zip(long, tokens, strict=True) if len(own) > encoder.max_tokens]


def cut_lines(records: Iterable[Record], cut: Collection[str]) -> list[dict[str, str]]:
    """Of each image each caption that is among `cut`, in the order of the records; time linear in both."""
    known = set(cut)
    return [
        {"source": record.source, "image_id": record.image_id, "caption": caption}
        for record in records
        for caption in record.captions
        if caption in known
    ]


def write_cut(url: str, lines: Iterable[Mapping[str, str]]) -> str:
    """Publish the listing, `cut_lines`, into a set's folder; returns its sha256."""
    listing = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    return publish_bytes(listing.encode(), join(url, CUT_NAME))


def read_cut(url: str) -> set[str]:
    """The captions of a set that its encoder cuts; empty where none is listed."""
    path = join(url, CUT_NAME)
    if not exists(path):
        return set()
    return {json.loads(line)["caption"] for line in read_bytes(path).decode().split("\n") if line}
