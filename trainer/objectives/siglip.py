"""SigLIP: every image-text pair is a yes-or-no question of its own (Zhai et al. 2023, eq. 1)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from core.errors import ConfigError
from trainer.data.names import IMAGE_ID, TEXT
from trainer.objectives.objective import IMAGE, Block, Objective, Rows, Tensors, check_temperature

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SigLIP(Objective):
    """`-1/N sum_ij log sigmoid(z_ij * (s * a_i . c_j + b))`, z 1 for an image and its caption and -1 for others.

    Pairs of the same image with another caption are left out, or positives as well. Scale and bias are learned.
    """

    positives: Literal["mask", "multi"] = "mask"  # further captions of the same image: left out, or positives as well
    init_temperature: float = 0.1  # at the start; it is learned
    init_bias: float = -10.0  # at the start nearly every pair is a negative
    max_logit_scale: float = 100.0  # 1 / temperature goes no higher

    features = (IMAGE, TEXT)
    columns = (IMAGE_ID,)

    def __post_init__(self) -> None:
        if self.positives not in ("mask", "multi"):
            raise ConfigError(f"siglip: positives is {self.positives!r}. Use 'mask' or 'multi'.")
        if not math.isfinite(self.init_bias):
            raise ConfigError(f"siglip: init_bias is {self.init_bias}: give a finite number, as -10.")
        check_temperature("siglip", self.init_temperature, self.max_logit_scale)
        super().__post_init__()

    def terms(self, block: Block) -> Iterator[Tensor]:
        from trainer.objectives.closed_form import sigmoid_loss
        from trainer.objectives.pairs import own_columns, same

        same_image = same(block, IMAGE_ID)
        positive = same_image if self.positives == "multi" else own_columns(block, IMAGE_ID)
        yield sigmoid_loss(
            block.rows[IMAGE],
            block.columns[TEXT],
            block.scalars["scale"],
            block.scalars["bias"],
            positive=positive,
            left_out=same_image & ~positive,
        )

    def parameters(self) -> dict[str, float]:
        return {"logit_scale": math.log(1 / self.init_temperature), "logit_bias": self.init_bias}

    def bounds(self) -> dict[str, tuple[float, float]]:
        return {"logit_scale": (0, math.log(self.max_logit_scale))}

    def scalars(self, parameters: Tensors) -> dict[str, Tensor]:
        return {"scale": parameters["logit_scale"].exp(), "bias": parameters["logit_bias"].clone()}

    def figures(self, rows: Rows, scalars: Tensors) -> dict[str, Tensor]:
        from trainer.objectives.negatives import negatives_report

        return {"logit_scale": scalars["scale"], "logit_bias": scalars["bias"], **negatives_report(rows)}
