"""Mutants: one-place changes of the product, tried against the tests of their room (docs/mutants.md)."""
