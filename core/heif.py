"""Photographs of phones (HEIC): read by pillow-heif where it is installed (`shardclip[heif]`), named where not."""

from __future__ import annotations

import io
from importlib.util import find_spec

from PIL import Image

HEIC, HEIC_REMEDY = "HEIC", "HEIC is read by pillow-heif: pip install 'shardclip[heif]'"
_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")  # of ISO 23008-12


class MissingHeifError(Exception):
    """The picture is HEIC and nothing here reads it."""


def is_heif(data: bytes | memoryview) -> bool:
    """By its first bytes."""
    start = bytes(data[:64])
    # AVIF is of the same family, and may call itself mif1 as well; it names itself among the brands.
    return start[4:8] == b"ftyp" and start[8:12] in _BRANDS and b"avif" not in start


def open_heif(data: bytes | memoryview) -> Image.Image:
    """The picture as PIL opens one: upright, decoded when it is loaded.

    Raises:
        MissingHeifError: pillow-heif is not installed.
    """
    if find_spec("pillow_heif") is None:
        raise MissingHeifError(f"pillow-heif is not installed. {HEIC_REMEDY}")
    from pillow_heif import HeifImagePlugin  # noqa: F401  registers itself with PIL

    return Image.open(io.BytesIO(data), formats=("HEIF",))
