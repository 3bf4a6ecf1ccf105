"""NT-Xent: two views of a picture find each other among all other views (SimCLR: Chen et al. 2020, eq. 1)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.errors import ConfigError
from trainer.data.names import IMAGE_ID
from trainer.objectives.objective import IMAGE, IMAGE2, Block, Objective, Rows, Tensors

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class NTXent(Objective):
    """Cross-entropy of each of the 2N views against the other 2N - 1, its other view being the right one.

    Views of other samples that show the same image are left out. The mean is over all 2N views.
    """

    temperature: float = 0.1  # SimCLR's best on ImageNet with batches of 4,096; 0.5 does well with small ones

    views = 2
    features = (IMAGE, IMAGE2)
    columns = (IMAGE_ID,)
    keeps_head = False
    head_dims = (2048, 128)

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ConfigError(f"nt_xent: temperature is {self.temperature}: give a number above 0.")
        super().__post_init__()

    def terms(self, block: Block) -> Iterator[Tensor]:
        import torch

        from trainer.objectives.closed_form import softmax_loss
        from trainer.objectives.pairs import own_columns, same

        columns = torch.cat([block.columns[IMAGE], block.columns[IMAGE2]])  # (2N, D)
        num_columns = len(block.columns[IMAGE])
        scale = 1 / self.temperature
        own, alike = own_columns(block, IMAGE_ID), same(block, IMAGE_ID)
        others = alike & ~own  # of the same image, in either view
        for view, name in enumerate((IMAGE, IMAGE2)):
            left_out = torch.cat([alike, others] if view == 0 else [others, alike], dim=1)
            right = block.offset + (num_columns if view == 0 else 0)
            yield softmax_loss(block.rows[name], columns, scale, own=right, left_out=left_out)

    def num_terms(self, everywhere: Tensors) -> int:
        return 2 * len(everywhere[IMAGE])

    def figures(self, rows: Rows, scalars: Tensors) -> dict[str, Tensor]:
        return {}
