"""The GPU kit: what only a GPU can show, measured in minutes from the bare tree: `python -m benchmarks.gpu`."""
