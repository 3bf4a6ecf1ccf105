"""Products of float32 matrices as IEEE float32, whatever the process's switches say: neither TF32 nor bfloat16."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_float32() -> Iterator[None]:
    """Matrix products round as float32 does, on every device; convolutions and autocast are not its business.

    `torch.set_float32_matmul_precision("medium")` lowers products on the CPU as well (oneDNN, to bfloat16).
    """
    # One backend at a time: the getter for all of them refuses to answer once a program has set one by itself.
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]  # set as it is imported
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
