"""Training pictures from stored ones, on the device, a batch at a time: crop, flip, blur, colours, normalisation.

The parameters of a picture are drawn from (seed, epoch, draw) alone, so that it looks the same on any number of
ranks, nodes and workers, and after a resume; a sample that comes again in an epoch has another draw. Geometry:
Inception-style crops (Szegedy 2014, as in torchvision's `RandomResizedCrop`). Colours: brightness, contrast,
saturation, hue, in this order, as one affine map per picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from core.seeding import uniform
from trainer.pictures.config import AugmentConfig
from trainer.pictures.resample import Taps, blur_taps, channels_behind, resample, resize_taps, sent


class Augment:
    """Batches of stored pictures `(B, 3, H, W)` uint8 to training pictures `(B, 3, size, size)` float32."""

    def __init__(
        self,
        config: AugmentConfig,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        seed: int,
        channels_last: bool = False,
    ) -> None:
        self.config = config
        self.seed = seed
        self._output = _Output(size, mean, std, channels_last)

    @torch.no_grad()
    def __call__(self, images: Tensor, epoch: int, draws: Tensor | np.ndarray, view: int = 0) -> Tensor:
        """Args:
        images: `(B, 3, H, W)` uint8; a channels-last view of an NHWC buffer is the cheapest.
        draws: `(B,)` numbers of `Batch.draws`; keep them on the CPU, where the parameters are drawn.
        view: of several training pictures of each stored one, which; from 0.
        """
        numbers = draws.cpu().numpy() if isinstance(draws, Tensor) else draws
        height, width = images.shape[-2:]
        drawn = draw(self.config, self.seed, epoch, numbers, height, width, view)
        return self._output.render(images, drawn)


class Normalize:
    """Evaluation: stored pictures `(B, 3, H, W)` uint8 to `(B, 3, size, size)` float32, resized where sizes differ."""

    def __init__(self, size: int, mean: Sequence[float], std: Sequence[float], channels_last: bool = False) -> None:
        self._output = _Output(size, mean, std, channels_last)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        return self._output.render(images, _unchanged(len(images), *images.shape[-2:]))


class Draw(NamedTuple):
    """The drawn parameters of `B` pictures, on the CPU."""

    box: Tensor  # (B, 4) float32, whole numbers: top, left, height, width
    flip: Tensor  # (B,) bool
    sigma: Tensor  # (B,) float32, 0: not blurred
    blur_radius: int
    colours: Tensor | None  # (B, 3, 4) float32, applied to (red, green, blue, mean grey of the picture)

    def part(self, rows: slice) -> Draw:
        """The parameters of some of the pictures."""
        colours = None if self.colours is None else self.colours[rows]
        return Draw(self.box[rows], self.flip[rows], self.sigma[rows], self.blur_radius, colours)

    def moves_pixels(self, height: int, width: int, size: int) -> bool:
        """Whether any pixel of the stored `height` x `width` changes place, or only colours change."""
        whole = bool((self.box == torch.tensor([0.0, 0.0, height, width])).all())
        return not whole or (height, width) != (size, size) or bool(self.flip.any()) or bool(self.sigma.any())


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
    colours = None
    if config.jitter or config.grayscale:
        colours = _colours(config, numbers("colour", 6).astype(np.float64))
    radius = math.ceil(3 * high)  # of the widest Gaussian
    return Draw(_tensor(box), torch.from_numpy(flip), _tensor(sigma), radius, colours)


_GREY = np.array([0.2989, 0.587, 0.114])  # ITU-R BT.601 luma, as in torchvision
_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_CROP_ATTEMPTS = 10  # as in torchvision: then the largest box of an allowed shape


class _Output:
    """How pictures leave: size, normalisation and memory format."""

    def __init__(self, size: int, mean: Sequence[float], std: Sequence[float], channels_last: bool) -> None:
        self.size = size
        self._scale = (1 / (255 * torch.tensor(std))).repeat(size)  # for a line of pixels, channels behind
        self._shift = (-torch.tensor(mean) / torch.tensor(std)).repeat(size)
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def render(self, images: Tensor, drawn: Draw) -> Tensor:
        batch, device = len(images), images.device
        shape = (batch, 3, self.size, self.size)
        out = torch.empty(shape, device=device, memory_format=self._memory_format)
        scale, shift = self._scale, self._shift = self._scale.to(device), self._shift.to(device)  # they stay there
        top, left, height, width = drawn.box.unbind(1)
        rows, columns = resize_taps(top, height, self.size), resize_taps(left, width, self.size, drawn.flip)
        at_once = _images_at_once(device, batch)
        for start in range(0, batch, at_once):
            part = slice(start, start + at_once)
            some = drawn.part(part)
            pictures = self._moved(images[part], some, rows.part(part), columns.part(part))
            if some.colours is not None:
                pictures = _recoloured(pictures, sent(some.colours, device))
            normalized = torch.addcmul(shift, pictures.flatten(2), scale).view_as(pictures)
            out[part] = normalized.permute(0, 3, 1, 2)
        return out

    def _moved(self, images: Tensor, drawn: Draw, rows: Taps, columns: Taps) -> Tensor:
        """Everything that moves pixels: `(b, S, S, 3)`, 0 to 255."""
        if not drawn.moves_pixels(images.shape[-2], images.shape[-1], self.size):
            return channels_behind(images)
        if drawn.sigma.any():
            radius = min(drawn.blur_radius, self.size - 1)
            rows, columns = (blur_taps(taps, drawn.sigma, radius) for taps in (rows, columns))
        return resample(images, rows, columns)


def _images_at_once(device: torch.device, batch: int) -> int:
    """A CPU goes picture by picture, so that what lies between stays in its cache (4 times as fast)."""
    return 1 if device.type == "cpu" else batch


def _unchanged(batch: int, height: int, width: int) -> Draw:
    box = torch.tensor([[0.0, 0.0, height, width]]).expand(batch, 4)
    return Draw(box, torch.zeros(batch, dtype=torch.bool), torch.zeros(batch), 0, None)


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


def _colours(config: AugmentConfig, u: np.ndarray) -> Tensor:
    """Brightness, contrast, saturation, hue and grey composed: `(B, 3, 4)`, applied to (rgb, mean grey)."""
    jittered = u[:, 0] < config.jitter

    def factor(strength: float, column: int) -> np.ndarray:
        low = max(0.0, 1 - strength)
        return np.where(jittered, low + (1 + strength - low) * u[:, column], 1)[:, None, None]

    brightness, contrast = factor(config.brightness, 1), factor(config.contrast, 2)
    saturation = factor(config.saturation, 3)
    angle = np.where(jittered, 2 * np.pi * config.hue * (2 * u[:, 4] - 1), 0)
    grey = (u[:, 5] < config.grayscale)[:, None, None]
    to_grey, identity = np.tile(_GREY, (3, 1)), np.eye(3)
    tint = hue_rotation(angle) @ (saturation * identity + (1 - saturation) * to_grey)
    tint = np.where(grey, to_grey, identity) @ tint
    colours = tint * contrast * brightness
    greys = tint.sum(axis=2) * ((1 - contrast) * brightness)[:, :, 0]
    return _tensor(np.concatenate([colours, greys[:, :, None]], axis=2))


def hue_rotation(angle: np.ndarray) -> np.ndarray:
    """Matrices `(B, 3, 3)` that turn the chroma of (red, green, blue) by `angle` `(B,)` radians at equal luma.

    The linear form of a hue shift (a rotation in YIQ, as NVIDIA DALI does it); torchvision shifts HSV, which bends.
    """
    turn = np.zeros((len(angle), 3, 3))
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = np.cos(angle)
    turn[:, 1, 2], turn[:, 2, 1] = -np.sin(angle), np.sin(angle)
    return np.linalg.inv(_YIQ) @ turn @ _YIQ


def _recoloured(pictures: Tensor, colours: Tensor) -> Tensor:
    """`pictures` `(b, S, S, 3)` through their colour maps `(b, 3, 4)`, cut to 0..255 once, at the end."""
    planes = pictures.permute(0, 3, 1, 2).flatten(2)  # (b, 3, S * S)
    mean_grey = planes.mean(dim=2) @ _grey(planes.device)  # (b,)
    added = colours[:, :, 3:] * mean_grey[:, None, None]  # contrast turns around the mean grey
    mixed = torch.baddbmm(added, colours[:, :, :3], planes).clamp_(0, 255)
    return mixed.unflatten(2, pictures.shape[1:3]).permute(0, 2, 3, 1).contiguous()


@cache
def _grey(device: torch.device) -> Tensor:
    return torch.tensor(_GREY, dtype=torch.float32, device=device)


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(np.float32))
