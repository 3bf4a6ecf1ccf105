"""`rejected.jsonl`: every input that did not become a sample, with the reason."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable

from core.storage import join, publish_bytes, read_bytes
from shard_builder.records import Skip

REJECTED_NAME = "rejected.jsonl"
_KEYS = ("source", "image_id", "reason", "detail")


def write_rejected(url: str, skipped: Iterable[Skip]) -> str:
    """Publish the listing into a set's folder; returns its sha256."""
    return publish_bytes(rejected_bytes(skipped), join(url, REJECTED_NAME))


def rejected_bytes(skipped: Iterable[Skip]) -> bytes:
    """The listing, sorted."""
    rows = sorted((skip.source, skip.image_id, skip.reason, skip.detail) for skip in skipped)
    return "".join(json.dumps(dict(zip(_KEYS, row)), ensure_ascii=False) + "\n" for row in rows).encode()


def read_rejected(url: str) -> list[Skip]:
    """The listing of a set.

    Raises:
        StorageError, ValueError, KeyError, TypeError, AttributeError: it is missing, or not as it was written.
    """
    lines = read_bytes(join(url, REJECTED_NAME)).decode().split("\n")
    rows = [json.loads(line) for line in lines if line]
    return [Skip(r.get("image_id", ""), r.get("source", ""), r["reason"], r.get("detail", "")) for r in rows]


def count_by_reason(skipped: Iterable[Skip]) -> dict[str, int]:
    """Reason -> number of skips, sorted by reason."""
    return dict(sorted(Counter(skip.reason for skip in skipped).items()))
