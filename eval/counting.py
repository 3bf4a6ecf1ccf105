"""How many entries of a similarity matrix are at least as large as given ones, along their row and their column.

The matrix is never whole: it is counted tile by tile, on a device, by all ranks of the process group. The grid of tiles
depends on the sizes of the two sides alone, so that a product has the same digits whichever rank computes it.
Legend: U images and V texts, distinct rows; P pairs of an image and a text; D embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import xxhash
from torch import Tensor

from core.distributed import act_together, all_reduce_sum, rank, world_size
from core.errors import DataError
from core.full_float32 import full_float32
from core.transfer import upload


@dataclass(frozen=True)
class Tile:
    """So many images times so many texts are multiplied at once."""

    images: int
    texts: int


CPU_TILE = Tile(128, 2048)  # similarities and mask, 1 MiB each, stay in a core's own cache
GPU_TILE = Tile(4096, 4096)  # 64 MiB each: the product takes far longer than starting the work on it
_MOST_ROWS = 2**24  # counts are kept as float32, which is exact below
_AT_ONCE = 8  # pairs of every line that are compared without a copy; beyond that, chosen lines are copied together


class Distinct:
    """The rows of one side, those with equal bits once: a matrix product may round equal columns apart.

    Attributes:
        place: `(rows,)` which distinct row each row is.
        copies: `(U,)` how many rows each distinct row stands for.
    """

    def __init__(self, rows: np.ndarray) -> None:
        first_seen: dict[bytes, int] = {}
        self.place = np.empty(len(rows), dtype=np.int64)
        for i, row in enumerate(rows):
            self.place[i] = first_seen.setdefault(xxhash.xxh3_128_digest(row), len(first_seen))
        self.copies = np.bincount(self.place)
        self._first = np.unique(self.place, return_index=True)[1]  # ascending: distinct rows stand as first seen
        self._rows = rows

    def __len__(self) -> int:
        return len(self._first)

    def rows(self, wanted: slice | np.ndarray) -> np.ndarray:
        """`(n, D)` distinct rows; a slice without repetitions in between is no copy."""
        first = self._first[wanted]
        if isinstance(wanted, slice) and first[-1] - first[0] == len(first) - 1:
            return self._rows[first[0] : first[-1] + 1]
        return self._rows[first]


@dataclass(frozen=True, eq=False)
class Pairs:
    """An image and a text of each pair, ordered by image and text, none twice.

    Attributes:
        image, text: `(P,)` places among the distinct images and texts; each of these is in at least one pair.
        similarity: `(P,)` float32, which stands in the matrix for what the product gives: that may round apart.
    """

    image: np.ndarray
    text: np.ndarray
    similarity: np.ndarray


def count_at_least(
    images: Distinct, texts: Distinct, pairs: Pairs, device: torch.device, tile: Tile | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """`(P,)` each: texts at least as similar to a pair's image, images at least as similar to its text (collective).

    Copies are counted, and the pair itself. Memory above the features, on the host and on the device: some megabytes,
    some numbers for each pair, and the images' rows where they do not lie there already.

    Args:
        tile: None: as suits the device.

    Raises:
        DataError: a side has 2^24 rows or more.
    """
    num_rows = max(int(images.copies.sum()), int(texts.copies.sum()))
    if num_rows >= _MOST_ROWS:
        raise DataError(f"{num_rows:,} rows to rank: at most {_MOST_ROWS - 1:,} can be counted. Use a smaller set.")
    tile = tile or (CPU_TILE if device.type == "cpu" else GPU_TILE)
    counts = all_reduce_sum(act_together(lambda: _own_counts(images, texts, pairs, device, tile)))
    along_image, along_text = counts.cpu().numpy()
    return along_image, along_text


class _Question:
    """Pairs of one block of lines (rows or columns of the matrix) that are counted together, and the count so far.

    Args:
        lines: `(q,)` the line of each pair, from 0 in the block; None: every line has one, in order.
        pairs: `(q,)` their numbers.
    """

    def __init__(self, lines: np.ndarray | None, pairs: np.ndarray, all_pairs: Pairs, device: torch.device) -> None:
        self.lines = None if lines is None else upload(torch.from_numpy(lines), device)
        self.pairs = upload(torch.from_numpy(pairs), device)
        self._similarity = upload(torch.from_numpy(all_pairs.similarity[pairs, None]), device)
        self.at_least = torch.zeros(len(pairs), device=device)

    def ask(self, similarity: Tensor, mask: Tensor, copies: Tensor) -> None:
        """Count in `similarity` `(lines, n)`, whose columns stand for `copies` `(n,)`; `mask` is room as large."""
        # As floats: comparisons to bool are not vectorised on the CPU, and sums by product are.
        if self.lines is None:
            found = torch.ge(similarity, self._similarity, out=mask)
        else:
            found = similarity.index_select(0, self.lines).ge_(self._similarity)
        self.at_least.addmv_(found, copies)


class _Block:
    """Successive distinct rows of one side on the device, and what is asked along them."""

    def __init__(
        self, side: Distinct, lines: slice, line: np.ndarray, pairs: np.ndarray, given: Pairs, device: torch.device
    ) -> None:
        self.lines = lines
        self.rows = upload(torch.from_numpy(side.rows(lines)), device)
        self.copies = upload(torch.from_numpy(side.copies[lines].astype(np.float32)), device)
        asked = _questions(line - lines.start, pairs, len(self.rows))
        self.questions = [_Question(chosen, numbers, given, device) for chosen, numbers in asked]


class _Strip(_Block):
    """A block of texts, and where in each tile of its columns the pairs' own similarities belong."""

    def __init__(
        self, texts: Distinct, lines: slice, pairs: np.ndarray, given: Pairs, device: torch.device, tile: Tile
    ) -> None:
        super().__init__(texts, lines, given.text[pairs], pairs, given, device)
        pairs = np.sort(pairs)  # by image
        image, width = given.image[pairs], len(self.rows)
        self._ends = np.searchsorted(image, np.arange(0, image[-1] + tile.images + 1, tile.images))
        self._cell = upload(torch.from_numpy(image % tile.images * width + given.text[pairs] - lines.start), device)
        self._own = upload(torch.from_numpy(given.similarity[pairs]), device)

    def place_own(self, similarity: Tensor, number: int) -> None:
        """Put them into the tile with the block of images of that number."""
        if number + 1 < len(self._ends):
            here = slice(self._ends[number], self._ends[number + 1])
            similarity.view(-1).index_copy_(0, self._cell[here], self._own[here])


def _own_counts(images: Distinct, texts: Distinct, pairs: Pairs, device: torch.device, tile: Tile) -> Tensor:
    """`(2, P)` of this rank's tiles: strips of texts are dealt out whole, in turn."""
    counts = torch.zeros(2, len(pairs.image), dtype=torch.int64, device=device)
    room = torch.empty(2, tile.images * tile.texts, device=device)
    by_text = np.argsort(pairs.text, kind="stable")
    blocks = [
        _Block(images, lines, pairs.image[own], own, pairs, device)
        for lines, own in _blocks(pairs.image, np.arange(len(pairs.image)), tile.images, len(images))
    ]
    with full_float32(), torch.autocast(device.type, enabled=False):
        strips = list(_blocks(pairs.text[by_text], by_text, tile.texts, len(texts)))
        for lines, own in strips[rank() :: world_size()]:
            strip = _Strip(texts, lines, own, pairs, device, tile)
            for number, block in enumerate(blocks):
                shape = len(block.rows), len(strip.rows)
                similarity, mask = (part[: shape[0] * shape[1]].view(shape) for part in room)
                torch.mm(block.rows, strip.rows.T, out=similarity)
                strip.place_own(similarity, number)
                for question in block.questions:
                    question.ask(similarity, mask, strip.copies)
                for question in strip.questions:
                    question.ask(similarity.T, mask.T, block.copies)
            _note(strip, counts[1])
    for block in blocks:
        _note(block, counts[0])
    return counts


def _note(block: _Block, counts: Tensor) -> None:
    for question in block.questions:
        counts.index_copy_(0, question.pairs, question.at_least.long())


def _blocks(line: np.ndarray, pairs: np.ndarray, size: int, num_lines: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Blocks of `size` lines, the last one smaller, each with its pairs; these are ordered by `line` `(P,)`."""
    for start in range(0, num_lines, size):
        stop = min(start + size, num_lines)
        yield slice(start, stop), pairs[slice(*np.searchsorted(line, (start, stop)))]


def _questions(line: np.ndarray, pairs: np.ndarray, num_lines: int) -> Iterator[tuple[np.ndarray | None, np.ndarray]]:
    """The pairs of a block, ordered by line, in groups: the first pair of every line, the second, and the rest."""
    counts = np.bincount(line, minlength=num_lines)
    first = np.cumsum(counts) - counts
    num_whole = min(counts.min(), _AT_ONCE)
    for nth in range(num_whole):
        yield None, pairs[first + nth]
    rest = np.flatnonzero(np.arange(len(line)) - first[line] >= num_whole)
    for start in range(0, len(rest), num_lines):
        part = rest[start : start + num_lines]
        yield line[part], pairs[part]
