"""Torch's SGD, with momentum that begins as zeros."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class SteadySGD(torch.optim.SGD):
    """The same steps as torch's: zeros decayed, and the first gradient added, are that gradient.

    Torch's fused form makes the momentum without filling it, and fills it in its first step. Where that step is passed
    over, since its gradients were not finite, what stood in that memory would be taken for momentum; and where some
    parameters have momentum already and others are new (thawed later), it fails.
    """

    def _init_group(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], momentum_buffer_list: list[Any]
    ) -> bool:
        for parameter in group["params"] if group["momentum"] else ():
            if parameter.grad is not None and self.state[parameter].get("momentum_buffer") is None:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return bool(super()._init_group(group, params, grads, momentum_buffer_list))
