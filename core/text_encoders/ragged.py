"""Captions laid end to end: no padding, and every matrix product has one shape whatever the captions are.

A batch is a row of T tokens. Linear layers and norms work token by token; attention runs once per group of captions
of equal length; so what a caption gives does not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Run:
    """Neighbours of equal length."""

    start: int  # token at which the first begins
    count: int  # captions
    length: int  # tokens of each

    @property
    def stop(self) -> int:
        """Token after the last."""
        return self.start + self.count * self.length


def runs_of(lengths: Sequence[int]) -> list[Run]:
    """The groups of equal neighbours in `lengths`."""
    groups = [(length, len(list(same))) for length, same in groupby(lengths)]
    starts = accumulate((length * count for length, count in groups), initial=0)
    return [Run(start, count, length) for start, (length, count) in zip(starts, groups)]


def positions_of(lengths: Sequence[int], num_tokens: int, device: torch.device) -> torch.Tensor:
    """`(T,)`: each token's place in its own caption; 0 for the filler."""
    places = torch.zeros(num_tokens, dtype=torch.long)
    for run in runs_of(lengths):
        places[run.start : run.stop] = torch.arange(run.length).repeat(run.count)
    return places.to(device)


def ragged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    runs: Sequence[Run],
    scaling: float | None = None,
    is_causal: bool = False,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention within each caption, in the form that transformers calls (it passes more than is needed here).

    Args:
        query: `(1, H, T, d)`, as key and value; T tokens of captions laid end to end.

    Returns:
        `(1, T, H, d)`, zero for the filler; and no weights.
    """
    pieces = []
    for run in runs:
        q, k, v = (
            x[0, :, run.start : run.stop].unflatten(1, (run.count, run.length)).transpose(0, 1)
            for x in (query, key, value)
        )
        attended = F.scaled_dot_product_attention(q, k, v, scale=scaling, is_causal=is_causal)  # (count, H, length, d)
        pieces.append(attended.transpose(1, 2).flatten(0, 1))
    num_heads, num_tokens, head_dim = query.shape[1:]
    filler = num_tokens - runs[-1].stop
    return torch.cat([*pieces, query.new_zeros(filler, num_heads, head_dim)])[None], None


def mean_of_tokens(hidden: torch.Tensor, runs: Sequence[Run]) -> torch.Tensor:
    """`(T, D)` -> `(n, D)`: the mean over each caption's tokens."""
    return torch.cat([hidden[r.start : r.stop].unflatten(0, (r.count, r.length)).mean(dim=1) for r in runs])
