"""Pictures made worse in known ways: corruptions of ImageNet-C, with its constants, and a covered square of our own.

Formulas and constants are those of Hendrycks and Dietterich 2019 (arXiv 1903.12261; `make_imagenet_c.py` of
github.com/hendrycks/robustness), for pictures of 224 pixels. At another size S blur kernels are those of 224, shrunk
or stretched by area to S / 224; pixelation goes by shares of S, and noise, jpeg, contrast and brightness by pixel,
as they are. Each number is drawn by (seed, corruption, severity, sample): batches, workers and ranks do not matter.
Imported without torch, since recipes name corruptions.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from core.seeding import derive_seed

if TYPE_CHECKING:
    from torch import Tensor

SEVERITIES = (1, 2, 3, 4, 5)
_SIZE = 224  # pixels of ImageNet-C's pictures
_AT_ONCE = 32  # pictures, of which a blur takes 1.5 MiB each in float64 at 224 pixels, several times
# Fractions of a level are cut off, as ImageNet-C does. What is nearer than this to a whole level is that level: which
# side of it a sum comes to lie on depends on the order in which a device adds.
_SAME_LEVEL = 1e-6
_COVER = 127
Draw = np.random.Generator


@dataclass(frozen=True)
class Corruption:
    """A way to make pictures worse.

    Attributes:
        constants: of each severity, 1 to 5.
        change: `(B, 3, S, S)` uint8, the constant and a generator for each picture -> the same shape, uint8.
    """

    constants: tuple[Any, ...]
    change: Callable[[Tensor, Any, Sequence[Draw]], Tensor]


def corrupt(pictures: Tensor, samples: np.ndarray, name: str, severity: int, seed: int = 0) -> Tensor:
    """`(B, 3, S, S)` uint8, where the pictures lie: each corrupted by what is drawn for its sample.

    Args:
        pictures: `(B, 3, S, S)` uint8.
        samples: `(B,)` numbers of the samples in their set.
        name: of the table.
        severity: 1 to 5.
    """
    import torch

    kind = CORRUPTIONS[name]
    constant = kind.constants[severity - 1]
    draws = [np.random.Generator(np.random.Philox(key=derive_seed(seed, name, severity, int(s)))) for s in samples]
    starts = range(0, len(pictures), _AT_ONCE)
    return torch.cat([kind.change(pictures[i : i + _AT_ONCE], constant, draws[i : i + _AT_ONCE]) for i in starts])


def _each(change: Callable[[np.ndarray, Any, Draw], np.ndarray]) -> Callable[[Tensor, Any, Sequence[Draw]], Tensor]:
    """Of a change of one `(3, S, S)` picture on the CPU: what is drawn there is the same for every device."""

    def changed(pictures: Tensor, constant: Any, draws: Sequence[Draw]) -> Tensor:
        import torch

        from core.transfer import Download, upload

        own = Download(pictures).value().numpy()
        rows = [change(picture, constant, draw) for picture, draw in zip(own, draws, strict=True)]
        return upload(torch.from_numpy(np.stack(rows)), pictures.device)

    return changed


def _gaussian_noise(picture: np.ndarray, deviation: float, draw: Draw) -> np.ndarray:
    noise = draw.standard_normal(picture.shape, dtype=np.float32)
    return np.clip(picture + np.float32(255 * deviation) * noise, 0, 255).astype(np.uint8)


def _shot_noise(picture: np.ndarray, photons: int, draw: Draw) -> np.ndarray:
    """Counts of photons, as many of which make a full level."""
    counts = draw.poisson(picture / 255 * photons)
    return (np.minimum(counts, photons) * 255 // photons).astype(np.uint8)


def _impulse_noise(picture: np.ndarray, share: float, draw: Draw) -> np.ndarray:
    """A share of the levels, each channel by itself, becomes 0 or 255, either as often."""
    drawn = draw.random(picture.shape, dtype=np.float32)
    salted = np.where(drawn < share, np.uint8(255), picture)
    return np.where(drawn < share / 2, np.uint8(0), salted)


def _jpeg(picture: np.ndarray, quality: int, draw: Draw) -> np.ndarray:
    stored = io.BytesIO()
    _image(picture).save(stored, "JPEG", quality=quality)
    return _channels_first(Image.open(stored))


def _pixelate(picture: np.ndarray, share: float, draw: Draw) -> np.ndarray:
    side = picture.shape[-1]
    small = max(1, int(side * share))
    coarse = _image(picture).resize((small, small), Image.Resampling.BOX)
    return _channels_first(coarse.resize((side, side), Image.Resampling.BOX))


def _occlusion(picture: np.ndarray, share: float, draw: Draw) -> np.ndarray:
    """A grey square over a share of the area, wholly inside: a rule of our own."""
    side = round(picture.shape[-1] * math.sqrt(share))
    top, left = draw.integers(0, picture.shape[-1] - side + 1, size=2)
    covered = picture.copy()
    covered[:, top : top + side, left : left + side] = _COVER
    return covered


def _contrast(pictures: Tensor, share: float, draws: Sequence[Draw]) -> Tensor:
    """Levels move towards the mean of their channel in their picture."""
    import torch

    num_pixels = pictures.shape[2] * pictures.shape[3]
    means = pictures.sum((2, 3), keepdim=True, dtype=torch.int64).double() / num_pixels
    return _levels((pictures.double() - means) * share + means)


def _brightness(pictures: Tensor, added: float, draws: Sequence[Draw]) -> Tensor:
    """V of HSV, the largest channel, grows; the other channels keep their ratio to it, and black turns grey."""
    import torch

    brightest = pictures.amax(1, keepdim=True).double()
    wanted = (brightest + 255 * added).clamp(max=255)
    coloured = pictures.double() * wanted / brightest.clamp(min=1)
    return _levels(torch.where(brightest > 0, coloured, wanted))


def _gaussian_blur(pictures: Tensor, sigma: float, draws: Sequence[Draw]) -> Tensor:
    """Beyond its edge a picture goes on as the edge is (scikit-image's `nearest`)."""
    return _filtered(pictures, gaussian_kernel(sigma), "replicate")


def _defocus_blur(pictures: Tensor, disk: tuple[int, float], draws: Sequence[Draw]) -> Tensor:
    """Beyond its edge a picture is mirrored in its last pixel (OpenCV's default)."""
    return _filtered(pictures, disk_kernel(*disk), "reflect")


@cache
def gaussian_kernel(sigma: float) -> np.ndarray:
    """`(K, K)`, cut off at four deviations, as scikit-image does; in pixels of 224."""
    weights = _bell(sigma, int(4 * sigma + 0.5))
    return np.outer(weights, weights)


@cache
def disk_kernel(radius: int, softness: float) -> np.ndarray:
    """`(K, K)`: a disk whose rim is softened by a Gaussian, which is cut off at 1 pixel (2 beyond radius 8)."""
    half, reach = (8, 1) if radius <= 8 else (radius, 2)
    x = np.arange(-half, half + 1)
    disk = (x[:, None] ** 2 + x**2 <= radius**2).astype(np.float64)
    padded, weights = np.pad(disk / disk.sum(), reach, "reflect"), _bell(softness, reach)
    rows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1, axis=0) @ weights
    softened: np.ndarray = np.lib.stride_tricks.sliding_window_view(rows, 2 * reach + 1, axis=1) @ weights
    return softened


def resized_kernel(kernel: np.ndarray, scale: float) -> np.ndarray:
    """`(K, K)` -> `(K', K')`, both odd: every weight is spread over the pixels that its square covers at this scale."""
    half = len(kernel) // 2
    new_half = math.ceil((half + 0.5) * scale - 0.5)
    centre, new = np.arange(-half, half + 1), np.arange(-new_half, new_half + 1)[:, None]
    covered = np.minimum(new + 0.5, (centre + 0.5) * scale) - np.maximum(new - 0.5, (centre - 0.5) * scale)
    spread = covered.clip(min=0) / scale  # (K', K): the share of each old row in each new one
    resized: np.ndarray = spread @ kernel @ spread.T
    return resized


def _bell(sigma: float, reach: int) -> np.ndarray:
    """Samples of a Gaussian from -reach to reach, with sum 1."""
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    return np.asarray(weights / weights.sum())


def _filtered(pictures: Tensor, kernel: np.ndarray, beyond: str) -> Tensor:
    """Pictures blurred by a kernel of 224 pixels that is symmetric, in float64.

    Args:
        beyond: what lies beyond the edges, as `torch.nn.functional.pad` calls it.
    """
    import torch

    side = pictures.shape[-1]
    kernel = resized_kernel(kernel, side / _SIZE)
    reach = len(kernel) // 2
    padded = torch.nn.functional.pad(pictures.double(), (reach,) * 4, beyond)
    shape = padded.shape[2:]
    weights = torch.from_numpy(kernel).to(pictures.device)
    spectrum = torch.fft.rfft2(padded) * torch.fft.rfft2(weights, s=shape)
    return _levels(torch.fft.irfft2(spectrum, s=shape)[..., 2 * reach :, 2 * reach :])


def _levels(values: Tensor) -> Tensor:
    import torch

    return (values + _SAME_LEVEL).clamp(0, 255).to(torch.uint8)


def _image(picture: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0)))


def _channels_first(image: Image.Image) -> np.ndarray:
    return np.asarray(image).transpose(2, 0, 1)


CORRUPTIONS: dict[str, Corruption] = {
    # Deviation, of levels from 0 to 1.
    "gaussian_noise": Corruption((0.08, 0.12, 0.18, 0.26, 0.38), _each(_gaussian_noise)),
    # Photons of a full level.
    "shot_noise": Corruption((60, 25, 12, 5, 3), _each(_shot_noise)),
    # Share of the levels.
    "impulse_noise": Corruption((0.03, 0.06, 0.09, 0.17, 0.27), _each(_impulse_noise)),
    # Deviation, in pixels of 224; ImageNet-C counts it among its four extra corruptions.
    "gaussian_blur": Corruption((1, 2, 3, 4, 6), _gaussian_blur),
    # Radius and softness of the rim, in pixels of 224.
    "defocus_blur": Corruption(((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)), _defocus_blur),
    # Share of the contrast that is left.
    "contrast": Corruption((0.4, 0.3, 0.2, 0.1, 0.05), _contrast),
    # What is added to V of HSV, from 0 to 1.
    "brightness": Corruption((0.1, 0.2, 0.3, 0.4, 0.5), _brightness),
    # PIL's quality.
    "jpeg_compression": Corruption((25, 18, 15, 10, 7), _each(_jpeg)),
    # Pixels that are left, as a share of the side.
    "pixelate": Corruption((0.6, 0.5, 0.4, 0.3, 0.25), _each(_pixelate)),
    # Share of the area; not of ImageNet-C.
    "occlusion": Corruption((0.05, 0.1, 0.2, 0.3, 0.4), _each(_occlusion)),
}
