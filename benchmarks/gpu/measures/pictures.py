"""Pixels on the device: the same as on the CPU, and JPEGs decoded there."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.gpu.measure import Context, Figures, Skipped
from benchmarks.gpu.training import HEAVY

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_ROUNDS = 10


def device_pixels(context: Context) -> Figures:
    """The largest difference of training pictures made on GPU and CPU from the same draws, in levels of 255."""
    import torch

    stored, _ = _stored(context)
    on_device = torch.from_numpy(stored).cuda().permute(0, 3, 1, 2)
    expected = _changed(context, torch.from_numpy(stored).permute(0, 3, 1, 2))
    levels = (255 * torch.tensor(_STD))[:, None, None]
    worst = ((_changed(context, on_device).cpu() - expected).abs() * levels).max().item()
    seconds = _seconds(lambda: _changed(context, on_device))
    return {
        "pictures": len(stored),
        "largest_difference_levels": worst,
        "device_images_per_s": len(stored) * _ROUNDS / seconds,
    }


def gpu_decoding(context: Context) -> Figures:
    """JPEGs decoded by torchcodec on the GPU: speed, and distance from the decoder of the loader."""
    import torch

    if importlib.util.find_spec("torchcodec") is None:
        raise Skipped("torchcodec is not installed")
    from torchcodec import decoders

    decode = getattr(decoders, "decode_jpeg", None)
    if decode is None:
        raise Skipped("this torchcodec decodes no pictures; 0.16 does")
    stored, jpegs = _stored(context)
    decoded = [decode(jpeg, device="cuda") for jpeg in jpegs]
    seconds = _seconds(lambda: [decode(jpeg, device="cuda") for jpeg in jpegs])
    expected = torch.from_numpy(stored).permute(0, 3, 1, 2)
    apart = (torch.stack(decoded).cpu().float() - expected.float()).abs()
    return {
        "pictures": len(jpegs),
        "images_per_s": len(jpegs) * _ROUNDS / seconds,
        "mean_difference_levels": apart.mean().item(),
        "largest_difference_levels": apart.max().item(),
    }


def _changed(context: Context, images: Any) -> Any:
    """The product's training pictures, on the device of `images`."""
    from trainer.pictures.augment import Augment
    from trainer.pictures.config import AugmentConfig

    config = AugmentConfig(**{name: tuple(v) if isinstance(v, list) else v for name, v in HEAVY.items()})
    augment = Augment(config, context.size.image_size, _MEAN, _STD, seed=0, channels_last=True)
    return augment(images, 0, np.arange(len(images)))


def _stored(context: Context) -> tuple[np.ndarray, list[bytes]]:
    """Some stored pictures `(N, S, S, 3)` uint8, as the loader decodes them, and their JPEGs."""
    from core.image import decode_into
    from core.shard_index import IMAGE
    from core.shard_set import ShardSet

    shards = ShardSet.open(str(context.shards))
    numbers = range(min(context.size.num_pictures, len(shards)))
    pixels = np.empty((len(numbers), shards.image.size, shards.image.size, 3), np.uint8)
    for number in numbers:
        decode_into(shards.member(number, IMAGE), shards.image_spec(number), pixels[number])
    return pixels, [bytes(shards.member(number, IMAGE)) for number in numbers]


def _seconds(work: Callable[[], Any]) -> float:
    """Of `_ROUNDS` times, after one to warm up."""
    import torch

    work()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(_ROUNDS):
        work()
    torch.cuda.synchronize()
    return time.perf_counter() - began
