"""Everything that has gradient, in one module: the one that is wrapped for several processes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from trainer.models.encoder import Encoder
from trainer.objectives.objective import Objective


class TrainedModel(nn.Module):
    """The encoder, and the learned scalars of its objective."""

    def __init__(self, encoder: Encoder, objective: Objective) -> None:
        super().__init__()
        self.objective = objective
        learned = {name: nn.Parameter(torch.tensor(value)) for name, value in objective.parameters().items()}
        # Before the encoder: the norm over all gradients is summed in this order, and so keeps its last digit.
        self.learned = nn.ParameterDict(learned)
        self.encoder = encoder

    def forward(self, inputs: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Features by name (`Encoder.forward`), and the objective's scalars."""
        return self.encoder(inputs), self.scalars()

    def scalars(self) -> dict[str, Tensor]:
        """What the objective makes of its learned parameters."""
        return self.objective.scalars(dict(self.learned.items()))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The trainable parameters by part: those of the encoder, and each learned scalar by its name."""
        return {**self.encoder.parameter_groups(), **{name: [p] for name, p in self.learned.items()}}

    @torch.no_grad()
    def clamp(self) -> None:
        """Keep learned scalars within their bounds; call it after every optimizer step."""
        for name, (low, high) in self.objective.bounds().items():
            self.learned[name].clamp_(low, high)
