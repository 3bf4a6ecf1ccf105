"""Work on rows dealt out over the ranks, in blocks that do not depend on how many there are: the same digits always."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def spread(num_rows: int, block: int, work: Callable[[slice], np.ndarray]) -> np.ndarray:
    """`(num_rows, ...)` of what `work` gives for each block of rows, on every rank; collective.

    Args:
        block: rows at a time; the same on every rank. A product of other rows would round otherwise.
        work: gives a row for each row of the slice.

    Raises:
        DistributedError: another rank could not do its share.
    """
    from core.distributed import act_together, gather_objects, rank, world_size  # with torch, which recipes do without

    starts = range(0, max(num_rows, 1), block)  # of none, one empty slice

    def share() -> list[np.ndarray]:
        own = starts[rank() :: world_size()]
        return [work(slice(start, min(start + block, num_rows))) for start in own]

    dealt = gather_objects(act_together(share))
    return np.concatenate([dealt[i % len(dealt)][i // len(dealt)] for i in range(len(starts))])
