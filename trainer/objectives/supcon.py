"""SupCon: all pictures of a class are positives of each other (Khosla et al. 2020, eq. 2, the sum outside the log)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.errors import ConfigError
from trainer.data.names import LABEL
from trainer.objectives.objective import IMAGE, IMAGE2, Block, Objective, Rows, Tensors

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SupCon(Objective):
    """`loss_i = -1/|P(i)| sum_{p in P(i)} log(exp(z_i . z_p / t) / sum_{a != i} exp(z_i . z_a / t))`.

    P(i) are all other views of the label of view i, its own other view among them. A negative label is none: its only
    positive is its own other view. Views without a positive take no part; the mean is over those that have one.
    """

    temperature: float = 0.1  # the paper's
    views: int = 2  # of each picture; with 1, positives are other pictures of the class alone

    columns = (LABEL,)
    keeps_head = False
    head_dims = (2048, 128)

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ConfigError(f"supcon: temperature is {self.temperature}: give a number above 0.")
        if self.views not in (1, 2):
            raise ConfigError(f"supcon: views is {self.views}. Use 1 or 2.")
        super().__post_init__()

    @property
    def features(self) -> tuple[str, ...]:  # type: ignore[override]
        """The views that are compared."""
        return (IMAGE, IMAGE2)[: self.views]

    def terms(self, block: Block) -> Iterator[Tensor]:
        import torch

        from trainer.objectives.closed_form import softmax_loss
        from trainer.objectives.pairs import own_columns, same, shares

        columns = torch.cat([block.columns[name] for name in self.features])  # (V * N, D)
        own = own_columns(block, LABEL)
        alike = own | (same(block, LABEL) & (block.rows[LABEL] >= 0)[:, None])
        scale = 1 / self.temperature
        for view, name in enumerate(self.features):
            itself = torch.cat([own if other == view else own & False for other in range(self.views)], dim=1)
            positive = torch.cat([alike] * self.views, dim=1) & ~itself
            yield softmax_loss(
                block.rows[name],
                columns,
                scale,
                target=shares(positive, columns.dtype),
                left_out=itself,
                weights=positive.any(1).to(columns.dtype),
            )

    def num_terms(self, everywhere: Tensors) -> int | Tensor:
        labels = everywhere[LABEL]
        if self.views == 2:
            return 2 * len(labels)
        ordered = labels.sort().values
        repeats = ordered[1:] == ordered[:-1]  # neighbours of one label
        edge = repeats.new_zeros(1)
        import torch

        has_positive = (torch.cat([repeats, edge]) | torch.cat([edge, repeats])) & (ordered >= 0)
        return has_positive.sum().clamp_min(1)

    def figures(self, rows: Rows, scalars: Tensors) -> dict[str, Tensor]:
        import torch

        labels, ordered = rows.own[LABEL], rows.everywhere[LABEL].sort().values
        counts = torch.searchsorted(ordered, labels, right=True) - torch.searchsorted(ordered, labels)
        return {"samples_of_the_class": (counts * (labels >= 0)).float().mean()}
