"""Every kind of picture is decoded by the stated rule, or left out with a reason."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from core import image as imaging
from core.image import (
    PAD_COLOUR,
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


def stored(data: bytes, fit: str) -> bytes | str:
    """What a build stores of a picture, or why it is left out."""
    try:
        return encode_jpeg(decode_fitted(data, 48, fit)[0], 95)
    except ImageError as error:
        return error.reason


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FILTER", "LANCZOS"),
        ("DRAFT_FACTOR", 1),
        ("PAD_COLOUR", (0, 0, 0)),
        ("MIN_SIDE", 201),
        ("JPEG_SUBSAMPLING", "4:4:4"),
        ("JPEG_OPTIMIZE", True),
        ("JPEG_PROGRESSIVE", True),
    ],
)
def test_a_constant_decides_what_is_stored(name: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = [encoded(smooth(300, 200), "JPEG", quality=95), encoded(smooth(300, 200), "PNG")]
    before, constants = [stored(photo, "pad") for photo in photos], imaging.constants()
    monkeypatch.setattr(imaging, name, value)
    assert [key for key, old in imaging.constants().items() if old != constants[key]] == [name.lower()]
    assert [stored(photo, "pad") for photo in photos] != before


def test_the_jpeg_options_are_those_that_sets_were_always_written_with() -> None:
    draw = np.random.default_rng(0)
    for quality in (1, 50, 90, 95, 100):
        for side in (8, 17, 224):
            noise = Image.fromarray(draw.integers(0, 256, (side, side, 3), dtype=np.uint8))
            assert encode_jpeg(noise, quality) == encoded(noise, "JPEG", quality=quality)
    progressive = decode(encoded(smooth(60, 40), "JPEG", progressive=True, quality=90, comment=b"x"))
    assert encode_jpeg(progressive, 95) == encoded(progressive, "JPEG", quality=95)


@pytest.mark.parametrize(
    ("width", "height", "top", "left"),
    [(60, 40, 10, 0), (40, 60, 0, 10), (61, 60, 0, 0), (60, 61, 0, 0), (60, 57, 1, 0), (57, 60, 0, 1), (20, 57, 0, 19)],
)
def test_padding_is_even_and_an_odd_pixel_of_it_comes_last(width: int, height: int, top: int, left: int) -> None:
    size = 60
    found = np.asarray(fit_image(Image.new("RGB", (width, height), (200, 10, 10)), size, "pad"))
    is_padding = (found == PAD_COLOUR).all(-1)
    inner = (round(height * size / max(width, height)), round(width * size / max(width, height)))
    expected = np.ones((size, size), bool)
    expected[top : top + inner[0], left : left + inner[1]] = False
    np.testing.assert_array_equal(is_padding, expected)
    below, right = size - inner[0] - top, size - inner[1] - left
    assert below - top in (0, 1) and right - left in (0, 1)
    assert (found[~is_padding] == (200, 10, 10)).all()


def test_a_padded_picture_of_extreme_shape_keeps_a_row() -> None:
    found = np.asarray(fit_image(Image.new("RGB", (4000, 8), (200, 10, 10)), 60, "pad"))
    rows = np.flatnonzero((found != PAD_COLOUR).any((1, 2)))
    assert rows.tolist() == [29]
    columns = np.asarray(fit_image(Image.new("RGB", (8, 4000), (200, 10, 10)), 61, "pad"))
    assert np.flatnonzero((columns != PAD_COLOUR).any((0, 2))).tolist() == [30]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF"])
def test_eight_pixels_are_the_smallest_side_kept(kind: str) -> None:
    for size in ((8, 8), (8, 300), (300, 8)):
        assert decode(encoded(Image.new("RGB", size), kind)).size == size
        assert decode_fitted(encoded(Image.new("RGB", size), kind), 16, "crop")[1] == size
    for size in ((7, 7), (7, 300), (300, 7), (1, 8)):
        with pytest.raises(ImageError, match=f"too_small: {size[0]} x {size[1]}, the shorter side must have 8"):
            decode(encoded(Image.new("RGB", size), kind))


def test_the_pixel_limit_itself_is_kept() -> None:
    data = encoded(Image.new("RGB", (20, 30)), "PNG")
    assert decode(data, max_pixels=600).size == (20, 30)
    with pytest.raises(ImageError, match="too_many_pixels: 20 x 30, the limit is 599"):
        decode(data, max_pixels=599)


def test_real_photographs_decode(shared_data: Path) -> None:
    paths = sorted((shared_data / "coco" / "images").glob("*.jpg"))[:20]
    assert len(paths) == 20
    for path in paths:
        assert fit_image(decode(path.read_bytes(), smallest=224), 224, "crop").size == (224, 224)


def test_the_imaging_library_is_named() -> None:
    assert imaging_library().startswith("pillow")
