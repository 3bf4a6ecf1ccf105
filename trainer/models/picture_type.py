"""The type in which a tower is given its pictures in training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from core.precision import Precision, autocast_type
from trainer.models.encoder import ImageEncoder

_MOVES = (torch.ops.aten.clone.default, torch.ops.aten.constant_pad_nd.default)  # values stay what they are


@torch.no_grad()
def picture_type(encoder: ImageEncoder, size: int, device: torch.device, precision: Precision) -> torch.dtype:
    """Autocast's type where it is the first thing that happens to pictures, float32 everywhere else.

    Most towers begin with a product, whose inputs autocast rounds: pictures that are rounded before give the same to
    the bit, in half the memory. A tower that first resizes them (timm's CrossViT) or normalises them would do that in
    the short type. So what happens to two pictures is watched.

    Args:
        encoder: on `device`, not wrapped; left as it was.
        size: of the pictures, pixels.
        precision: "no", "bf16" or "fp16".
    """
    dtype, was_training = autocast_type(precision), encoder.training
    if dtype is None:
        return torch.float32
    pictures = torch.zeros(2, 3, size, size, device=device)
    encoder.eval()
    with torch.autocast(device.type, dtype), _FirstUses(pictures, dtype) as uses:
        encoder.tower_features(pictures)
    encoder.train(was_training)
    return dtype if uses.only_round else torch.float32


class _FirstUses(TorchDispatchMode):
    """Whether all that is computed of the pictures begins with rounding them."""

    def __init__(self, pictures: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.only_round = True
        self._dtype = dtype
        self._pictures = {
            pictures.untyped_storage().data_ptr(): pictures
        }  # and what was only moved; held, so that no memory comes again

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(self._is_picture(x) for x in tree_leaves((args, kwargs))):
            made = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
            is_rounded = func is torch.ops.aten._to_copy.default and result.dtype == self._dtype
            if func in _MOVES or all(self._is_picture(x) for x in made):  # the latter: views
                self._pictures |= {x.untyped_storage().data_ptr(): x for x in made}
            elif not is_rounded:
                self.only_round = False
        return result

    def _is_picture(self, x: object) -> bool:
        return isinstance(x, Tensor) and x.untyped_storage().data_ptr() in self._pictures
