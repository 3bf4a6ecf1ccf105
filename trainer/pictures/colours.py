"""Changes of colour of a batch: brightness, contrast, saturation, hue and grey, as one affine map per picture."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from core.transfer import upload
from trainer.pictures.config import AugmentConfig


class ColourSpace(NamedTuple):
    """Constants of the maps, float64, on one device."""

    grey: Tensor  # (3,) ITU-R BT.601 luma, as in torchvision
    to_yiq: Tensor  # (3, 3)
    from_yiq: Tensor  # (3, 3)


def colour_space(device: torch.device) -> ColourSpace:
    """The constants, on the device."""
    return ColourSpace(*(upload(torch.from_numpy(x), device) for x in (_GREY, _YIQ, np.linalg.inv(_YIQ))))


def colour_maps(config: AugmentConfig, colours: Tensor, space: ColourSpace) -> Tensor:
    """Brightness, contrast, saturation, hue and grey composed in this order: `(B, 3, 4)` float32.

    Args:
        colours: `(B, 6)`, the columns `draw.COLOURS` of what is drawn.

    Returns:
        Maps of (red, green, blue, mean grey of the picture) to (red, green, blue).
    """
    chosen = colours.double()
    jittered, is_grey = chosen[:, 0] > 0, (chosen[:, 5] > 0)[:, None, None]

    def factor(strength: float, column: int) -> Tensor:
        low = max(0.0, 1 - strength)
        return torch.where(jittered, low + (1 + strength - low) * chosen[:, column], 1.0)[:, None, None]

    brightness, contrast = factor(config.brightness, 1), factor(config.contrast, 2)
    saturation = factor(config.saturation, 3)
    angle = torch.where(jittered, 2 * math.pi * config.hue * (2 * chosen[:, 4] - 1), 0.0)
    to_grey, identity = space.grey.expand(3, 3), torch.eye(3, dtype=torch.float64, device=colours.device)
    tint = hue_rotation(angle, space) @ (saturation * identity + (1 - saturation) * to_grey)
    tint = torch.where(is_grey, to_grey, identity) @ tint
    greys = tint.sum(dim=2, keepdim=True) * (1 - contrast) * brightness
    return torch.cat([tint * contrast * brightness, greys], dim=2).float()


def hue_rotation(angle: Tensor, space: ColourSpace) -> Tensor:
    """Matrices `(B, 3, 3)` that turn the chroma of (red, green, blue) by `angle` `(B,)` radians at equal luma.

    The linear form of a hue shift (a rotation in YIQ, as NVIDIA DALI does it); torchvision shifts HSV, which bends.
    """
    turn = torch.zeros(len(angle), 3, 3, dtype=torch.float64, device=angle.device)
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = torch.cos(angle)
    turn[:, 1, 2], turn[:, 2, 1] = -torch.sin(angle), torch.sin(angle)
    return space.from_yiq @ turn @ space.to_yiq


def recoloured(pictures: Tensor, maps: Tensor, space: ColourSpace) -> Tensor:
    """`pictures` `(b, S, S, 3)` through their colour maps `(b, 3, 4)`, cut to 0..255 once, at the end."""
    planes = pictures.permute(0, 3, 1, 2).flatten(2)  # (b, 3, S * S)
    mean_grey = planes.mean(dim=2) @ space.grey.float()  # (b,)
    added = maps[:, :, 3:] * mean_grey[:, None, None]  # contrast turns around the mean grey
    mixed = torch.baddbmm(added, maps[:, :, :3], planes).clamp_(0, 255)
    return mixed.unflatten(2, pictures.shape[1:3]).permute(0, 2, 3, 1).contiguous()


_GREY = np.array([0.2989, 0.587, 0.114])
_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])  # FCC, 1953
