"""Checkpoints: folders published whole, hashed, without pickle."""
