"""Which columns of a block belong to a row: its own, and those that show the same thing.

Dimensions: m rows, N columns.
"""

import torch
from torch import Tensor

from trainer.objectives.objective import Block


def own_columns(block: Block, like: str) -> Tensor:
    """Bool `(m, N)`: the column of the row's own sample; `like` names any row tensor."""
    own = torch.zeros(len(block.rows[like]), len(block.columns[like]), dtype=torch.bool, device=block.rows[like].device)
    own.diagonal(block.offset).fill_(True)
    return own


def same(block: Block, name: str) -> Tensor:
    """Bool `(m, N)`: columns with the row's value of an integer column, a row's own one among them."""
    return (block.rows[name][:, None] == block.columns[name]) | own_columns(block, name)


def shares(chosen: Tensor, dtype: torch.dtype) -> Tensor:
    """Equal shares of the chosen columns, `(m, n)`; a row without any has none."""
    return chosen / chosen.sum(1, keepdim=True, dtype=dtype).clamp_min_(1)
