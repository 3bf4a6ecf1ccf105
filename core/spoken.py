"""Counts in words: `1 fault`, `1,200 samples`."""

from __future__ import annotations


def counted(count: int, noun: str, plural: str = "") -> str:
    """The count and its noun, `noun` with an s (or `plural`) where it is not one."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"
