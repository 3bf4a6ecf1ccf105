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
    """Publish the listing, sorted, into a set's folder; returns its sha256."""
    rows = sorted((skip.source, skip.image_id, skip.reason, skip.detail) for skip in skipped)
    lines = "".join(json.dumps(dict(zip(_KEYS, row)), ensure_ascii=False) + "\n" for row in rows)
    return publish_bytes(lines.encode(), join(url, REJECTED_NAME))


def read_rejected(url: str) -> dict[str, int]:
    """The listing of a set, counted by reason."""
    lines = read_bytes(join(url, REJECTED_NAME)).decode().split("\n")
    return dict(sorted(Counter(json.loads(line)["reason"] for line in lines if line).items()))


def count_by_reason(skipped: Iterable[Skip]) -> dict[str, int]:
    """Reason -> number of skips, sorted by reason."""
    return dict(sorted(Counter(skip.reason for skip in skipped).items()))
