"""Crop, resize, flip and Gaussian blur of a batch in one pass per axis, each picture with its own parameters.

All four are linear and separable, so together they are one short list of taps (source position, weight) per output
row and one per output column; an output row is a weighted sum of a few source rows. Source: the triangle filter of
Pillow and of `torchvision.transforms.v2.functional.resize(antialias=True)`, which this equals to rounding.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Taps(NamedTuple):
    """For `S` output positions of `B` pictures: which `K` source positions are summed, with which weights."""

    source: Tensor  # (B, S, K) int64, within the source axis
    weight: Tensor  # (B, S, K) float32, sums to 1 over K

    def part(self, pictures: slice) -> Taps:
        """The taps of some of the pictures."""
        return Taps(self.source[pictures], self.weight[pictures])


def num_taps(length: int, size: int) -> int:
    """Taps of an output pixel, enough to resize whatever is cut out of `length` pixels to `size`."""
    return math.ceil(2 * max(1, length / size))


def resize_taps(start: Tensor, length: Tensor, size: int, num_taps: int, flip: Tensor | None = None) -> Taps:
    """Taps that cut `[start, start + length)` out of an axis, resize it to `size` and mirror it where `flip`.

    Args:
        start, length: `(B,)` float32, whole numbers.
        num_taps: of the function of this name; those that a picture does not need have weight 0.
        flip: `(B,)` bool.
    """
    device = length.device
    scale = length / size  # source pixels per output pixel
    support = scale.clamp(min=1)[:, None]  # the triangle widens when the picture shrinks: antialiasing
    centre = (torch.arange(size, device=device) + 0.5) * scale[:, None] - 0.5  # (B, S), in the crop's pixels
    position = (torch.floor(centre - support) + 1)[..., None] + torch.arange(num_taps, device=device)  # (B, S, K)
    weight = (1 - (position - centre[..., None]).abs() / support[..., None]).clamp(min=0)
    inside = (position >= 0) & (position < length[:, None, None])
    weight = weight * inside
    weight = weight / weight.sum(dim=-1, keepdim=True)
    index = (torch.where(inside, position, 0) + start[:, None, None]).long()
    if flip is not None:
        mirrored = flip[:, None, None]
        index, weight = torch.where(mirrored, index.flip(1), index), torch.where(mirrored, weight.flip(1), weight)
    return Taps(index, weight)


def blur_taps(taps: Taps, sigma: Tensor, radius: int) -> Taps:
    """`taps` followed by a Gaussian of `2 * radius + 1` output pixels, mirrored at the edges; `sigma` 0 leaves as is.

    Args:
        sigma: `(B,)` float32 in output pixels.
    """
    batch, size, _ = taps.source.shape
    device = sigma.device
    shift = torch.arange(-radius, radius + 1, device=device)
    gaussian = torch.exp(-0.5 * (shift / sigma.clamp(min=1e-3)[:, None]) ** 2)
    gaussian = gaussian / gaussian.sum(dim=1, keepdim=True)  # (B, M)
    neighbour = (torch.arange(size, device=device)[:, None] + shift).abs()  # (S, M)
    neighbour = torch.minimum(neighbour, 2 * (size - 1) - neighbour)
    weight = taps.weight[:, neighbour] * gaussian[:, None, :, None]  # (B, S, M, K)
    return Taps(taps.source[:, neighbour].reshape(batch, size, -1), weight.reshape(batch, size, -1))


def resample(images: Tensor, rows: Taps, columns: Taps) -> Tensor:
    """Weighted sums of source columns, then of source rows.

    Args:
        images: `(B, 3, H, W)` of any dtype; a channels-last view of an NHWC buffer is the cheapest.

    Returns:
        `(B, S, S, 3)` float32: rows, columns, channels.
    """
    batch, _, height, width = images.shape
    # Both sums run over whole contiguous lines, and both turns are plain matrix transpositions, torch's fastest copy.
    lines = channels_behind(images).view(batch, height, width * 3)
    columns_first = lines.transpose(1, 2).contiguous().view(batch, width, 3 * height)
    narrowed = _weighted_sum(columns_first, columns).view(batch, -1, height)  # (B, S * 3, H)
    lines = _weighted_sum(narrowed.transpose(1, 2).contiguous(), rows)  # (B, S, S * 3)
    return lines.unflatten(2, (-1, 3))


def channels_behind(images: Tensor) -> Tensor:
    """`(B, 3, H, W)` of any dtype and memory format as `(B, H, W, 3)` float32, contiguous."""
    return images.permute(0, 2, 3, 1).to(torch.float32, memory_format=torch.contiguous_format)


def _weighted_sum(lines: Tensor, taps: Taps) -> Tensor:
    """Lines `(B, N, L)` to `(B, S, L)`; `embedding_bag` is the one kernel that sums chosen lines without copies."""
    batch, num_lines = lines.shape[:2]
    first_line = torch.arange(batch, device=lines.device)[:, None, None] * num_lines
    bags, weights = (taps.source + first_line).flatten(0, 1), taps.weight.flatten(0, 1)
    return F.embedding_bag(bags, lines.flatten(0, 1), mode="sum", per_sample_weights=weights).unflatten(0, (batch, -1))
