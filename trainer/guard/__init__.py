"""Signals, and processes that get lost."""
