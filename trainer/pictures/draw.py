"""What is drawn for each training picture: crop box, flip, blur and colours; on the host, numbers in, numbers out.

The parameters of a picture are drawn from (seed, epoch, draw) alone, so that it looks the same on any number of
ranks, nodes and workers, and after a resume; a sample that comes again in an epoch has another draw. Crops:
Inception-style (Szegedy 2014, as in torchvision's `RandomResizedCrop`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from core.seeding import uniform
from core.transfer import upload
from trainer.pictures.config import AugmentConfig

# The columns of what is drawn.
BOX = slice(0, 4)  # whole numbers: top, left, height, width, in pixels of the stored picture
FLIP = 4  # 1 or 0
SIGMA = 5  # of the Gaussian, in pixels of the training picture; 0: not blurred
# Jittered (1 or 0); brightness, contrast, saturation and hue from 0, the least, to 1; grey (1 or 0).
COLOURS = slice(6, 12)


@dataclass(frozen=True)
class Draw:
    """The drawn parameters of `B` pictures, on the host: a row of numbers each, so that one copy sends them all.

    Attributes:
        numbers: `(B, 6)` float32, or `(B, 12)` where colours may change.
    """

    numbers: np.ndarray

    def moves_pixels(self, height: int, width: int, size: int) -> np.ndarray:
        """`(B,)` bool: whether any pixel of the stored `height` x `width` changes place, or only colours change."""
        is_cut = (self.numbers[:, BOX] != (0, 0, height, width)).any(axis=1)
        return is_cut | (self.numbers[:, FLIP] > 0) | self.blurs() | ((height, width) != (size, size))

    def blurs(self) -> np.ndarray:
        """`(B,)` bool."""
        return self.numbers[:, SIGMA] > 0

    @property
    def changes_colours(self) -> bool:
        """Whether the colours of any picture may change."""
        return self.numbers.shape[1] > SIGMA + 1

    def part(self, rows: slice) -> Draw:
        """Of some of the pictures."""
        return Draw(self.numbers[rows])

    def on(self, device: torch.device) -> Tensor:
        """The numbers on the device."""
        return upload(torch.from_numpy(self.numbers), device)


def draw(
    config: AugmentConfig, seed: int, epoch: int, draws: np.ndarray, height: int, width: int, view: int = 0
) -> Draw:
    """The parameters of each picture: a pure function of seed, epoch, draw and view, whatever else is in the batch.

    Args:
        draws: `(B,)` what each picture's parameters are keyed by (`Batch.draws`).
        height, width: of the stored pictures, pixels.
    """

    def numbers(stream: str, count: int) -> np.ndarray:
        return uniform(seed, epoch, draws, f"{stream} {view}" if view else stream, count)

    box = _boxes(config, numbers("crop", 2 * _CROP_ATTEMPTS + 2), height, width)
    flip = numbers("flip", 1)[:, 0] < config.flip
    blur = numbers("blur", 2)
    low, high = config.blur_sigma
    sigma = np.where(blur[:, 0] < config.blur, low + (high - low) * blur[:, 1], 0)
    columns = [box, flip[:, None], sigma[:, None]]
    if config.jitter or config.grayscale:
        colours = numbers("colour", 6)
        colours[:, 0] = colours[:, 0] < config.jitter
        colours[:, 5] = colours[:, 5] < config.grayscale
        columns.append(colours)
    return _packed(columns)


def whole(batch: int, height: int, width: int) -> Draw:
    """Pictures that are left as they are."""
    return _packed([np.tile([0, 0, height, width, 0, 0], (batch, 1))])


_CROP_ATTEMPTS = 10  # as in torchvision: then the largest box of an allowed shape


def _packed(columns: list[np.ndarray]) -> Draw:
    return Draw(np.concatenate(columns, axis=1).astype(np.float32))


def _boxes(config: AugmentConfig, u: np.ndarray, height: int, width: int) -> np.ndarray:
    """Crop boxes `(B, 4)`: the first attempt that fits, placed anywhere."""
    low, high = config.crop_scale
    area = height * width * (low + (high - low) * u[:, :_CROP_ATTEMPTS].astype(np.float64))
    low, high = np.log(config.crop_ratio)
    ratio = np.exp(low + (high - low) * u[:, _CROP_ATTEMPTS : 2 * _CROP_ATTEMPTS])
    widths, heights = np.round(np.sqrt(area * ratio)), np.round(np.sqrt(area / ratio))
    fits = (widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height)
    first = (np.arange(len(u)), fits.argmax(axis=1))
    widest, tallest = min(width, round(height * config.crop_ratio[1])), min(height, round(width / config.crop_ratio[0]))
    crop_width = np.where(fits.any(axis=1), widths[first], widest)
    crop_height = np.where(fits.any(axis=1), heights[first], tallest)
    top = np.floor(u[:, -2] * (height - crop_height + 1))
    left = np.floor(u[:, -1] * (width - crop_width + 1))
    return np.stack([top, left, crop_height, crop_width], axis=1)
