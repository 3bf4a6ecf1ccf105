"""Checkpoint -> numbers, pictures and a report; features and metrics are values, files appear only in `run`."""
