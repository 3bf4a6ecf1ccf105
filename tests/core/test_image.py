"""Every kind of picture is decoded by the stated rule, or left out with a reason."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from core.image import (
    ImageError,
    decode,
    decode_fitted,
    decode_into,
    encode_jpeg,
    encode_raw,
    fit_image,
    imaging_library,
)
from core.manifest import ImageSpec


def smooth(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    planes = [255 * x / width, 255 * y / height, 128 + 100 * np.sin(x / 9)]
    return Image.fromarray(np.stack(planes, -1).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def difference(a: Image.Image, b: Image.Image) -> float:
    return float(np.abs(np.asarray(a).astype(float) - np.asarray(b)).mean())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(smooth(64, 40), kind, exif=exif, quality=95)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert expected.size == ((40, 64) if orientation > 4 else (64, 40))
    assert decode(data).size == expected.size == decode_fitted(data, 20, "crop")[1]
    assert difference(decode(data), expected) <= 1
    assert difference(decode_fitted(data, 20, "crop")[0], fit_image(expected, 20, "crop")) <= 1


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1}, {"quality": 30}]
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_quick_way_to_decode_a_jpeg_gives_what_pil_gives(mode: str, options: dict[str, Any]) -> None:
    data = encoded(smooth(611, 407).convert(mode), "JPEG", **{"quality": 90, **options})
    with Image.open(io.BytesIO(data)) as image:
        expected = image.convert("RGB")
    assert decode(data).mode == "RGB"
    assert difference(decode(data), expected) < 0.1  # two versions of libjpeg-turbo, equal to rounding
    for smallest in (20, 40, 80, 160):
        with Image.open(io.BytesIO(data)) as image:
            image.draft(None, (2 * smallest, 2 * smallest))
            expected = image.convert("RGB")
        found = decode(data, smallest=smallest)
        assert found.size == expected.size and difference(found, expected) < 0.1


def test_what_pil_can_read_of_a_damaged_jpeg_is_kept() -> None:
    data = bytearray(encoded(smooth(300, 200), "JPEG", quality=90))
    data[data.index(b"\xff\xda") : data.index(b"\xff\xda")] = b"stray bytes between two markers"
    with Image.open(io.BytesIO(data)) as image:
        expected = image.convert("RGB")
    assert difference(decode(bytes(data)), expected) == 0


def test_transparency_lies_over_white() -> None:
    image = smooth(20, 20).convert("RGBA")
    image.putalpha(0)
    for kind in (image, image.convert("LA")):
        assert np.asarray(decode(encoded(kind, "PNG"))).min() == 255
    palette = Image.new("P", (20, 20), 0)
    palette.putpalette([10, 20, 30, 200, 0, 0])
    assert np.asarray(decode(encoded(palette, "PNG", transparency=0))).min() == 255
    assert tuple(np.asarray(decode(encoded(palette, "PNG")))[0, 0]) == (10, 20, 30)


def test_deep_and_grey_pictures_are_rescaled() -> None:
    ramp = np.linspace(0, 65535, 400).reshape(20, 20)
    expected = ramp / 257
    for image in (Image.fromarray(ramp.astype(np.uint16)), Image.fromarray(ramp.astype(np.int32))):
        found = np.asarray(decode(encoded(image, "TIFF"))).astype(float)
        assert np.abs(found - expected[..., None]).max() <= 1.5
    unit = Image.fromarray((ramp / 65535).astype(np.float32))
    assert np.abs(np.asarray(decode(encoded(unit, "TIFF"))) - expected[..., None]).max() <= 1.5
    grey = smooth(20, 20).convert("L")
    assert difference(decode(encoded(grey, "PNG")), grey.convert("RGB")) == 0


def test_cmyk_and_the_first_frame() -> None:
    cmyk = smooth(40, 40).convert("CMYK")
    assert difference(decode(encoded(cmyk, "TIFF")), cmyk.convert("RGB")) == 0
    first, second = Image.new("RGB", (20, 20), (255, 0, 0)), Image.new("RGB", (20, 20), (0, 0, 255))
    animated = encoded(first, "GIF", save_all=True, append_images=[second])
    assert tuple(np.asarray(decode(animated))[5, 5]) == (255, 0, 0)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "unreadable"),
        (b"GIF89a but no picture", "unreadable"),
        (encoded(smooth(300, 300), "JPEG")[:3000], "truncated"),
        (encoded(Image.new("RGB", (1, 1)), "PNG"), "too_small"),
        (encoded(Image.new("1", (20000, 20000)), "PNG"), "too_many_pixels"),
    ],
)
def test_what_cannot_be_used_has_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError) as error:
        decode(data)
    assert error.value.reason == reason and error.value.detail and "0x" not in error.value.detail


def test_mutated_pictures_never_crash() -> None:
    draw, kept = random.Random(0), 0
    originals = [encoded(smooth(60, 60), kind) for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")]
    for number in range(600):
        data = bytearray(originals[number % len(originals)])
        for _ in range(draw.randrange(1, 8)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        try:
            image = decode(bytes(data))
        except ImageError as error:
            assert error.reason in ("unreadable", "truncated", "too_many_pixels", "too_small")
        else:
            kept += 1
            assert image.mode == "RGB"
    assert 0 < kept < 600


def test_every_fit_gives_a_square_of_the_right_part() -> None:
    wide = Image.new("RGB", (300, 100), (0, 255, 0))
    wide.paste((255, 0, 0), (0, 0, 100, 100))
    wide.paste((0, 0, 255), (200, 0, 300, 100))
    assert np.asarray(fit_image(wide, 50, "crop")).reshape(-1, 3).mean(0) == pytest.approx([0, 255, 0], abs=3)
    assert np.asarray(fit_image(wide, 60, "squash")).reshape(-1, 3).mean(0) == pytest.approx([85, 85, 85], abs=3)
    padded = np.asarray(fit_image(wide, 60, "pad"))
    assert padded.shape == (60, 60, 3) and (padded[:20] == 127).all() and (padded[40:] == 127).all()
    assert fit_image(Image.new("RGB", (8, 40_000)), 224, "crop").size == (224, 224)  # no 224 x 1,120,000 in between


def test_cropping_equals_resizing_first() -> None:
    image = smooth(500, 333)
    resized = image.resize((336, 224), Image.Resampling.BICUBIC)
    assert difference(fit_image(image, 224, "crop"), resized.crop((56, 0, 280, 224))) < 1.0


def test_draft_decoding_changes_little() -> None:
    data = encoded(smooth(2000, 1500), "JPEG", quality=95)
    whole, draft = decode(data), decode(data, smallest=100)
    assert min(draft.size) >= 200 and draft.size < whole.size
    assert difference(fit_image(whole, 100, "crop"), fit_image(draft, 100, "crop")) < 1.0


@pytest.mark.parametrize("codec", ["jpeg", "raw", "mixed"])
def test_the_training_path_gives_the_stored_picture(codec: str) -> None:
    image = fit_image(smooth(300, 200), 64, "crop")
    data = {"jpeg": encode_jpeg(image, 95), "raw": encode_raw(image), "mixed": encoded(smooth(300, 200), "PNG")}[codec]
    out = np.zeros((64, 64, 3), np.uint8)
    decode_into(memoryview(data), ImageSpec(64, "crop", codec), out)
    assert np.abs(out.astype(int) - np.asarray(image)).mean() < (3 if codec == "jpeg" else 0.01)


def test_the_training_path_refuses_damage_and_other_sizes() -> None:
    out, spec = np.zeros((64, 64, 3), np.uint8), ImageSpec(64)
    image = smooth(64, 64)
    for data in (encode_jpeg(image, 95)[:-100], encode_jpeg(smooth(32, 32), 95), b"text"):
        with pytest.raises(ImageError, match="unreadable"):
            decode_into(memoryview(data), spec, out)
    with pytest.raises(ImageError, match="bytes, .* are expected"):
        decode_into(memoryview(encode_raw(image)[:-1]), ImageSpec(64, codec="raw"), out)


def test_real_photographs_decode(shared_data: Path) -> None:
    paths = sorted((shared_data / "coco" / "images").glob("*.jpg"))[:20]
    assert len(paths) == 20
    for path in paths:
        assert fit_image(decode(path.read_bytes(), smallest=224), 224, "crop").size == (224, 224)


def test_the_imaging_library_is_named() -> None:
    assert imaging_library().startswith("pillow")
