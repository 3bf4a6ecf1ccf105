"""The hardware's limit: the same JPEGs, decoded one after the other into the same buffer by libjpeg-turbo.

`python -m benchmarks.loader_peers.decode_alone INPUT`
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import simplejpeg

from benchmarks.loader_peers.inputs import STORED_SIZE, samples
from benchmarks.loader_peers.timing import BATCH, main


def decoded(folder: Path, workers: int) -> Iterator[np.ndarray]:
    jpegs = [sample.jpeg for sample in samples(folder)]
    batch = np.empty((BATCH, STORED_SIZE, STORED_SIZE, 3), dtype=np.uint8)
    order = np.random.default_rng(0)
    while True:
        for row, number in enumerate(order.integers(len(jpegs), size=BATCH).tolist()):
            simplejpeg.decode_jpeg(jpegs[number], "RGB", buffer=batch[row])
        yield batch


if __name__ == "__main__":
    main({"jpeg": decoded})
