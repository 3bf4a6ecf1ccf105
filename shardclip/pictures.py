"""Pictures as people have them become pictures as a shard set stores them: one size, one fit, uint8."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from PIL import Image

from core.errors import DataError
from core.image import ImageError, decode_fitted, fit_opened
from core.manifest import ImageSpec
from core.storage import read_bytes

if TYPE_CHECKING:
    import torch

Picture: TypeAlias = "Image.Image | str | Path | bytes | np.ndarray | torch.Tensor"
_CHANNELS = (1, 3)
_TAKEN = "a PIL image, a path, the bytes of a file, or an array"


def listed(pictures: Picture | list[Picture] | tuple[Picture, ...]) -> list[Picture]:
    """One picture, a batch in one array, or several pictures, as a list.

    Raises:
        DataError: it is no picture.
    """
    if isinstance(pictures, Image.Image | str | Path | bytes):
        return [pictures]
    if isinstance(pictures, list | tuple):
        return list(pictures)
    if not hasattr(pictures, "ndim"):
        raise DataError(f"a picture is {_TAKEN}; this is a {type(pictures).__name__}.")
    return list(pictures) if pictures.ndim == 4 else [pictures]


def stored(picture: Picture, spec: ImageSpec, number: int = 0) -> np.ndarray:
    """`(S, S, 3)` uint8, as the builder would have stored it, before its JPEG.

    Args:
        picture: arrays and tensors are `(H, W)`, `(H, W, C)` or `(C, H, W)` with 1 or 3 channels; uint8, or floats
            from 0 to 1, which are rounded to 256 levels.
        number: of the picture, for the sentence of an error.

    Raises:
        DataError: it cannot be read, or is no picture, or a float is outside 0 to 1.
        StorageError: there is no such file.
    """
    where = f"picture {number}" + (f" ({picture})" if isinstance(picture, str | Path) else "")
    try:
        if isinstance(picture, str | Path):
            return np.asarray(decode_fitted(read_bytes(picture), spec.size, spec.fit)[0])
        if isinstance(picture, bytes):
            return np.asarray(decode_fitted(picture, spec.size, spec.fit)[0])
        opened = picture if isinstance(picture, Image.Image) else _opened(picture, where)
        return np.asarray(fit_opened(opened, spec.size, spec.fit))
    except ImageError as error:
        raise DataError(f"{where}: {error}.") from error


def _opened(array: np.ndarray | torch.Tensor, where: str) -> Image.Image:
    """An array or a tensor, on any device, as a picture."""
    if isinstance(array, np.ndarray):
        values = array
    elif hasattr(array, "detach"):
        tensor = array.detach().cpu()
        values = (tensor.float() if tensor.is_floating_point() else tensor).numpy()  # numpy knows no bfloat16
    else:
        raise DataError(f"{where}: is a {type(array).__name__}, not {_TAKEN}.")
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or not {values.shape[0], values.shape[2]} & set(_CHANNELS):
        raise DataError(
            f"{where}: has the shape {tuple(values.shape)}. Give (H, W), (H, W, C) or (C, H, W) with 1 or 3 channels."
        )
    if values.shape[2] not in _CHANNELS:
        values = values.transpose(1, 2, 0)
    levels = _levels(values, where)
    return Image.fromarray(np.ascontiguousarray(levels if levels.shape[2] == 3 else levels[..., 0]))


def _levels(values: np.ndarray, where: str) -> np.ndarray:
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind != "f":
        raise DataError(f"{where}: holds {values.dtype}. Give uint8, or floats from 0 to 1 as ToTensor makes them.")
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if not (low >= 0 and high <= 1):  # NaN is neither
        raise DataError(
            f"{where}: holds floats from {low:g} to {high:g}, outside 0 to 1. Give them as ToTensor makes them, not "
            "normalised, or uint8."
        )
    return np.rint(values.astype(np.float32) * 255).astype(np.uint8)
