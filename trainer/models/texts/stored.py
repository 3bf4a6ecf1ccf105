"""Text features from the shard sets: a frozen encoder's, embedded before the run, so that no text tower runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stored:
    """Nothing to choose here: which column of embeddings is read, `data.text` says."""
