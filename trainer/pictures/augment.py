"""Training pictures from stored ones, on the device, a batch at a time: crop, flip, blur, colours, normalisation.

One copy takes the drawn numbers of a batch to the device; all that follows from them is computed there, so that the
host waits for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from core.transfer import upload
from trainer.pictures.colours import ColourSpace, colour_maps, colour_space, recoloured
from trainer.pictures.config import AugmentConfig
from trainer.pictures.draw import BOX, COLOURS, FLIP, SIGMA, Draw, draw, whole
from trainer.pictures.resample import Taps, blur_taps, channels_behind, num_taps, resample, resize_taps

_BLOCK = 256  # pictures that are in floating point together, at most: 0.9 GB at 224 x 224


class Augment:
    """Batches of stored pictures `(B, 3, H, W)` uint8 to training pictures `(B, 3, size, size)` of type `dtype`."""

    def __init__(
        self,
        config: AugmentConfig,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        seed: int,
        channels_last: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.config = config
        self.seed = seed
        self._output = _Output(config, size, mean, std, channels_last, dtype)

    @torch.no_grad()
    def __call__(self, images: Tensor, epoch: int, draws: Tensor | np.ndarray, view: int = 0) -> Tensor:
        """Args:
        images: `(B, 3, H, W)` uint8; a channels-last view of an NHWC buffer is the cheapest.
        draws: `(B,)` numbers of `Batch.draws`, on the host, where the parameters are drawn.
        view: of several training pictures of each stored one, which; from 0.
        """
        return self.render(images, self.draw(images, epoch, draws, view))

    def draw(self, images: Tensor, epoch: int, draws: Tensor | np.ndarray, view: int = 0) -> Draw:
        """The parameters of each picture, on the host; of `images` only the size counts. Arguments as above."""
        numbers = draws.numpy() if isinstance(draws, Tensor) else draws
        height, width = images.shape[-2:]
        return draw(self.config, self.seed, epoch, numbers, height, width, view)

    @torch.no_grad()
    def render(self, images: Tensor, drawn: Draw) -> Tensor:
        """The training pictures of `images`, as drawn."""
        return self._output.render(images, drawn)


class Normalize:
    """Evaluation: stored pictures `(B, 3, H, W)` uint8 to `(B, 3, size, size)` float32, resized where sizes differ."""

    def __init__(self, size: int, mean: Sequence[float], std: Sequence[float], channels_last: bool = False) -> None:
        self._output = _Output(AugmentConfig(), size, mean, std, channels_last, torch.float32)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        return self._output.render(images, whole(len(images), *images.shape[-2:]))


class _Constants(NamedTuple):
    """What is the same for every picture, on one device."""

    scale: Tensor  # (3 * size,) of a line of pixels, channels behind: picture * scale + shift is normalised
    shift: Tensor
    space: ColourSpace


class _Output:
    """How pictures leave: size, normalisation, memory format and type."""

    def __init__(
        self,
        config: AugmentConfig,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        channels_last: bool,
        dtype: torch.dtype,
    ) -> None:
        self._config = config
        self._size = size
        self._blur_radius = min(math.ceil(3 * config.blur_sigma[1]), size - 1)  # of the widest Gaussian
        self._mean, self._std = torch.tensor(mean), torch.tensor(std)
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self._dtype = dtype
        self._constants: dict[torch.device, _Constants] = {}

    def render(self, images: Tensor, drawn: Draw) -> Tensor:
        batch, device = len(images), images.device
        shape = (batch, 3, self._size, self._size)
        out = torch.empty(shape, dtype=self._dtype, device=device, memory_format=self._memory_format)
        numbers = drawn.on(device)
        for block in _parts(batch, _BLOCK):
            self._render_block(images[block], drawn.part(block), numbers[block], out[block])
        return out

    def _render_block(self, images: Tensor, drawn: Draw, numbers: Tensor, out: Tensor) -> None:
        """Up to `_BLOCK` pictures into `out`; `numbers` are those of `drawn` on the device, where nobody reads them."""
        moves, blurs = drawn.moves_pixels(images.shape[-2], images.shape[-1], self._size), drawn.blurs()
        constants = self._constants_on(images.device)
        rows, columns = self._taps(numbers, images.shape[-2], images.shape[-1])
        maps = colour_maps(self._config, numbers[:, COLOURS], constants.space) if drawn.changes_colours else None
        for part in _parts(len(images), _images_at_once(images.device)):
            if moves[part].any():
                taps = [rows.part(part), columns.part(part)]
                if blurs[part].any():
                    taps = [blur_taps(each, numbers[part, SIGMA], self._blur_radius) for each in taps]
                pictures = resample(images[part], *taps)
            else:
                pictures = channels_behind(images[part])
            if maps is not None:
                pictures = recoloured(pictures, maps[part], constants.space)
            normalized = torch.addcmul(constants.shift, pictures.flatten(2), constants.scale).view_as(pictures)
            out[part] = normalized.permute(0, 3, 1, 2)

    def _taps(self, numbers: Tensor, height: int, width: int) -> tuple[Taps, Taps]:
        """Of crop, resize and flip: for rows and for columns."""
        top, left, crop_height, crop_width = numbers[:, BOX].unbind(1)
        rows = resize_taps(top, crop_height, self._size, num_taps(height, self._size))
        return rows, resize_taps(left, crop_width, self._size, num_taps(width, self._size), numbers[:, FLIP] > 0)

    def _constants_on(self, device: torch.device) -> _Constants:
        """Sent once, with the first batch."""
        if device not in self._constants:
            scale, shift = (1 / (255 * self._std)).repeat(self._size), (-self._mean / self._std).repeat(self._size)
            constants = _Constants(upload(scale, device), upload(shift, device), colour_space(device))
            self._constants[device] = constants
        return self._constants[device]


def _images_at_once(device: torch.device) -> int:
    """A CPU goes picture by picture, so that what lies between stays in its cache (4 times as fast)."""
    return 1 if device.type == "cpu" else _BLOCK


def _parts(count: int, size: int) -> Iterator[slice]:
    """`count` rows in slices of `size`, the last of what is left."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
