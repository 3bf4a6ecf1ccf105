"""HEIC: really read where pillow-heif is installed, named with the remedy where it is not."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from core import heif
from core.image import ImageError, decode, decode_fitted

HEADER = b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(64)


def test_without_the_library_heic_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heif, "find_spec", lambda name: None)
    with pytest.raises(ImageError, match=r"HEIC is read by pillow-heif: pip install 'shardclip\[heif\]'") as raised:
        decode(HEADER)
    assert raised.value.reason == "unsupported"


def test_avif_of_the_same_family_is_not_taken_for_heic() -> None:
    assert not heif.is_heif(b"\x00\x00\x00\x1cftypmif1\x00\x00\x00\x00mif1avifmiaf")
    assert heif.is_heif(HEADER)


@pytest.mark.parametrize("turn", [1, 6])
def test_a_photograph_is_read_upright(turn: int) -> None:
    library = pytest.importorskip("pillow_heif")
    pixels = np.zeros((96, 160, 3), np.uint8)
    pixels[:, :80] = (200, 30, 30)
    pixels[:, 80:] = (20, 40, 210)
    exif = Image.Exif()
    exif[0x0112] = turn
    buffer = io.BytesIO()
    library.from_pillow(Image.fromarray(pixels)).save(buffer, quality=95, exif=exif.tobytes())
    upright = np.asarray(decode(buffer.getvalue())).astype(int)
    expected = pixels if turn == 1 else np.rot90(pixels, -1)
    assert upright.shape == expected.shape and np.abs(upright - expected).mean() < 12
    fitted, original = decode_fitted(buffer.getvalue(), 64, "crop")
    assert fitted.size == (64, 64) and original == upright.shape[1::-1]


def test_a_damaged_one_is_left_out() -> None:
    pytest.importorskip("pillow_heif")
    with pytest.raises(ImageError):
        decode(HEADER)
