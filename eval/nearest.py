"""The nearest rows of a gallery, tile by tile on a device: the matrix of similarities is never whole.

Legend: `q` queries at a time, `G` rows of the gallery, `t` of them in a tile, `D` embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from core.full_float32 import full_float32
from core.transfer import upload

CPU_TILE, GPU_TILE = 4096, 65536  # rows of the gallery at a time; for 256 queries 4 and 64 MiB of similarities
MOST_QUERIES = 256  # at a time

Change = Callable[[Tensor, slice], None]  # (q, t) similarities and which rows of the gallery they are of; in place


class Tiles:
    """Cosines of blocks of queries with a gallery.

    Memory above the features is a tile and what is asked of it; on a GPU the gallery's features as well.

    Args:
        queries, gallery: `(Q, D)` and `(G, D)`, unit length.
        leave_one_out: the gallery is the queries, and none finds itself.
        rows: `(Q,)` where queries are some of the gallery, which of its rows each of them is; none finds itself.
        tile: rows of the gallery at a time; None: as suits the device.
    """

    def __init__(
        self,
        queries: np.ndarray,
        gallery: np.ndarray,
        *,
        leave_one_out: bool = False,
        rows: np.ndarray | None = None,
        device: str = "cpu",
        tile: int | None = None,
    ) -> None:
        self.device = torch.device(device)
        self._tile = tile or (GPU_TILE if self.device.type == "cuda" else CPU_TILE)
        self._queries = queries
        self._own = np.arange(len(queries)) if leave_one_out else rows  # of each query; None: not in the gallery
        self._gallery = upload(torch.from_numpy(np.ascontiguousarray(gallery, dtype=np.float32)), self.device)
        self.num_others = len(gallery) - (self._own is not None)  # that a query can find

    def of(self, part: slice) -> Iterator[tuple[slice, Tensor]]:
        """Rows of the gallery, and their similarities `(q, t)` with some queries; the next tile takes the same room."""
        rows = np.ascontiguousarray(self._queries[part], dtype=np.float32)
        queries = upload(torch.from_numpy(rows), self.device)
        room = torch.empty(len(queries) * self._tile, device=self.device)
        own = None if self._own is None else upload(torch.from_numpy(self._own[part]), self.device)
        for start in range(0, len(self._gallery), self._tile):
            columns = slice(start, min(start + self._tile, len(self._gallery)))
            width = columns.stop - start
            similarity = room[: len(queries) * width].view(len(queries), width)
            with full_float32(), torch.autocast(self.device.type, enabled=False):
                torch.mm(queries, self._gallery[columns].T, out=similarity)
            if own is not None:
                here = (own >= start) & (own < columns.stop)
                similarity[here.nonzero()[:, 0], own[here] - start] = -torch.inf
            yield columns, similarity

    def nearest(self, part: slice, k: int, change: Change | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The `k` best rows of the gallery for some queries, best first, and their similarities: `(q, k)` each.

        Args:
            k: at most `num_others`.
            change: what is done to similarities before they are compared.
        """
        num_queries = len(self._queries[part])
        best = torch.full((num_queries, 0), -torch.inf, device=self.device)
        rows = torch.zeros((num_queries, 0), dtype=torch.int64, device=self.device)
        for columns, similarity in self.of(part):
            if change is not None:
                change(similarity, columns)
            found, place = similarity.topk(min(k, similarity.shape[1]), dim=1)
            best, rows = torch.cat([best, found], dim=1), torch.cat([rows, place + columns.start], dim=1)
            best, order = best.topk(min(k, best.shape[1]), dim=1)
            rows = rows.gather(1, order)
        return rows.cpu().numpy(), best.cpu().numpy()
