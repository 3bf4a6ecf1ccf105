"""Images: one set of rules for decoding, fitting and encoding; torch-free.

Rules: EXIF orientation applied; transparency over white; CMYK, palette and grey to RGB; 16-bit and float rescaled to
8 bits; the first frame of an animation; the pixel count is checked before decoding; truncated files are an error.
The builder's workers put pillow-simd's folder on `sys.path` before they import this file.
"""

from __future__ import annotations

import io
from importlib.metadata import version
from typing import Any

import numpy as np
import PIL
import simplejpeg
from PIL import Image, UnidentifiedImageError, features
from PIL.JpegImagePlugin import JpegImageFile

from core.heif import MissingHeifError, is_heif, open_heif
from core.manifest import ImageSpec

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM")
DEFAULT_MAX_PIXELS = 100_000_000
# What decides stored bytes beside a recipe's settings: `constants` gives it to the recipe by name.
FILTER = "BICUBIC"  # of PIL, with antialiasing, as CLIP's own
DRAFT_FACTOR = 2  # a JPEG may be decoded smaller while both sides stay this many times what is needed
PAD_COLOUR = (127, 127, 127)  # near zero after normalisation
MIN_SIDE = 8  # pixels: what is smaller is a tracking pixel or a spacer
JPEG_SUBSAMPLING = "4:2:0"
JPEG_OPTIMIZE = False
JPEG_PROGRESSIVE = False

RAW_EXTENSION = "image.npy"
_RAW_HEADER = 128  # bytes of a version 1.0 .npy header for a (S, S, 3) uint8 array
ORIENTATION = 0x0112  # EXIF tag
_TURN = Image.Transpose
_UPRIGHT = {
    2: _TURN.FLIP_LEFT_RIGHT,
    3: _TURN.ROTATE_180,
    4: _TURN.FLIP_TOP_BOTTOM,
    5: _TURN.TRANSPOSE,
    6: _TURN.ROTATE_270,
    7: _TURN.TRANSVERSE,
    8: _TURN.ROTATE_90,
}
_SIDEWAYS = (_TURN.TRANSPOSE, _TURN.ROTATE_270, _TURN.TRANSVERSE, _TURN.ROTATE_90)
Image.MAX_IMAGE_PIXELS = None  # `decode` checks the pixel count itself, by the set's own limit


class ImageError(ValueError):
    """An image that is left out; `reason` is a short name that is counted, `detail` says more."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def decode(data: bytes | memoryview, max_pixels: int = DEFAULT_MAX_PIXELS, smallest: int | None = None) -> Image.Image:
    """The picture in RGB, upright.

    Args:
        smallest: the shorter side that will be needed at most, in pixels; JPEGs may be decoded at a half, a quarter or
            an eighth as long as both sides stay at least twice that.

    Raises:
        ImageError: `unreadable`, `truncated`, `too_many_pixels`, `too_small`, or `unsupported` by this imaging library.
    """
    return _decode(data, max_pixels, smallest)[0].convert("RGB")


def decode_fitted(
    data: bytes | memoryview, size: int, fit: str, max_pixels: int = DEFAULT_MAX_PIXELS
) -> tuple[Image.Image, tuple[int, int]]:
    """The picture in RGB as a square of `size` pixels, and width and height of its original in pixels, upright.

    Raises:
        ImageError: as `decode`.
    """
    image, original = _decode(data, max_pixels, size)
    return fit_image(image, size, fit), original


def fit_opened(image: Image.Image, size: int, fit: str) -> Image.Image:
    """A picture that was opened or made elsewhere as a square of `size` pixels, by the rules of files.

    A JPEG that is open and not yet decoded goes from its bytes, so that a large one is shrunk as `decode_fitted` does;
    the picture itself is left as it is.

    Raises:
        ImageError: `too_small`, or `truncated` or `unreadable` where its file is read only now.
    """
    if min(image.size) < MIN_SIDE:
        raise ImageError("too_small", f"{image.width} x {image.height}, the shorter side must have {MIN_SIDE}")
    try:
        if (data := _bytes_of_undecoded_jpeg(image)) is not None:
            return decode_fitted(data, size, fit, max_pixels=image.width * image.height)[0]
        turn = None if image.format == "TIFF" else _UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
        rgb = _to_rgb(image)
        return fit_image(rgb.transpose(turn) if turn is not None else rgb, size, fit)
    except ImageError:
        raise
    except (OSError, SyntaxError, ValueError) as error:  # of PIL's plugins
        reason = "truncated" if "truncated" in str(error).lower() else "unreadable"
        raise ImageError(reason, f"{type(error).__name__}: {error}") from error


def _bytes_of_undecoded_jpeg(image: Image.Image) -> bytes | None:
    """The file of a JPEG that PIL has opened and not decoded; None of all else, and where its reader set `draft`."""
    if not isinstance(image, JpegImageFile) or not image.tile or image.decoderconfig or image.tell() or not image.fp:
        return None
    at = image.fp.tell()
    image.fp.seek(0)
    data = image.fp.read()
    image.fp.seek(at)
    return data


def _decode(data: bytes | memoryview, max_pixels: int, smallest: int | None) -> tuple[Image.Image, tuple[int, int]]:
    """The picture upright, in RGB or RGBX (its fourth byte means nothing), and the original's size."""
    try:
        image = open_heif(data) if is_heif(data) else Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
        if width * height > max_pixels:
            raise ImageError("too_many_pixels", f"{width} x {height}, the limit is {max_pixels}")
        if min(width, height) < MIN_SIDE:
            raise ImageError("too_small", f"{width} x {height}, the shorter side must have {MIN_SIDE}")
        # PIL's TIFF plugin turns its pictures itself, and gives their upright size.
        turn = None if image.format == "TIFF" else _UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
        decoded = _decode_jpeg(image, data, smallest) or _decode_other(image, smallest)
        upright = decoded.transpose(turn) if turn is not None else decoded
        return upright, (height, width) if turn in _SIDEWAYS else (width, height)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise _unidentified(bytes(data[:16])) from None
    except MissingHeifError as error:
        raise ImageError("unsupported", str(error)) from None
    except Exception as error:  # PIL's plugins raise every kind on damaged files; each becomes a counted reason
        reason = "truncated" if "truncated" in str(error).lower() else "unreadable"
        raise ImageError(reason, f"{type(error).__name__}: {error}") from error


def _decode_jpeg(image: Image.Image, data: bytes | memoryview, smallest: int | None) -> Image.Image | None:
    """A sound JPEG in colour or grey, a sixth quicker than by PIL; None leaves it to PIL and its rules."""
    if image.format != "JPEG" or image.mode not in ("RGB", "L"):
        return None
    width, height = image.size
    shrink = _shrink(width, height, smallest)
    least = (-(-height // shrink), -(-width // shrink)) if shrink > 1 else (0, 0)
    try:
        pixels = simplejpeg.decode_jpeg(data, "RGBX", min_height=least[0], min_width=least[1])
    except ValueError:  # damaged, perhaps so little that PIL can still read it
        return None
    return Image.frombuffer("RGBX", (pixels.shape[1], pixels.shape[0]), pixels, "raw", "RGBX", 0, 1)


def _decode_other(image: Image.Image, smallest: int | None) -> Image.Image:
    if smallest:
        enough = (DRAFT_FACTOR * smallest, DRAFT_FACTOR * smallest)
        image.draft("RGB" if image.mode in ("RGB", "YCbCr") else None, enough)
    image.load()
    return _to_rgb(image)


def _shrink(width: int, height: int, smallest: int | None) -> int:
    """The largest of 8, 4, 2, 1 by which both sides may be divided, as PIL's `draft` chooses it."""
    spare = min(width, height) // (DRAFT_FACTOR * smallest) if smallest else 1
    return next(factor for factor in (8, 4, 2, 1) if factor <= max(spare, 1))


def fit_image(image: Image.Image, size: int, fit: str) -> Image.Image:
    """The picture as a square of `size` pixels: `crop` (centre of the longer side), `squash` or `pad`."""
    width, height = image.size
    resample = Image.Resampling[FILTER]
    if fit == "squash":
        box = (0.0, 0.0, float(width), float(height))
    elif fit == "crop":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        # Only what stays is resampled: a 1 x 20,000 image costs nothing.
        box = (left, top, left + side, top + side)
    elif fit == "pad":
        scale = size / max(width, height)
        inner = (max(1, round(width * scale)), max(1, round(height * scale)))
        canvas = Image.new("RGB", (size, size), PAD_COLOUR)
        resized = image.resize(inner, resample).convert("RGB")
        canvas.paste(resized, ((size - inner[0]) // 2, (size - inner[1]) // 2))
        return canvas
    else:
        raise AssertionError(f"fit {fit!r}")
    return image.resize((size, size), resample, box).convert("RGB")


def encode_jpeg(image: Image.Image, quality: int) -> bytes:
    """JPEG bytes."""
    buffer = io.BytesIO()
    image.save(
        buffer,
        "JPEG",
        quality=quality,
        subsampling=JPEG_SUBSAMPLING,
        optimize=JPEG_OPTIMIZE,
        progressive=JPEG_PROGRESSIVE,
    )
    return buffer.getvalue()


def encode_raw(image: Image.Image) -> bytes:
    """`.npy` bytes of the `(S, S, 3)` uint8 array."""
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(image))
    return buffer.getvalue()


def decode_into(data: memoryview, spec: ImageSpec, out: np.ndarray) -> None:
    """Decode a stored image straight into `out` `(S, S, 3)` uint8: the training path.

    Raises:
        ImageError: it cannot be decoded, or has another size than the set's.
    """
    if spec.codec == "raw":
        if len(data) != _RAW_HEADER + out.nbytes:
            raise ImageError("unreadable", f"{len(data)} bytes, {_RAW_HEADER + out.nbytes} are expected")
        out[:] = np.frombuffer(data, np.uint8, offset=_RAW_HEADER).reshape(out.shape)
    elif spec.codec == "jpeg":
        try:
            decoded = simplejpeg.decode_jpeg(data, "RGB", buffer=out)
        except ValueError as error:
            raise ImageError("unreadable", str(error)) from error
        if decoded.shape != out.shape:
            raise ImageError("unreadable", f"{decoded.shape[1]} x {decoded.shape[0]}, the set has {spec.size}")
    else:
        out[:] = np.asarray(decode_fitted(data, spec.size, spec.fit)[0])


def constants() -> dict[str, Any]:
    """What this file does the same for every recipe, and what stored bytes depend on, as JSON knows it."""
    return {
        "filter": FILTER,
        "draft_factor": DRAFT_FACTOR,
        "pad_colour": list(PAD_COLOUR),
        "min_side": MIN_SIDE,
        "jpeg_subsampling": JPEG_SUBSAMPLING,
        "jpeg_optimize": JPEG_OPTIMIZE,
        "jpeg_progressive": JPEG_PROGRESSIVE,
    }


def imaging_library() -> str:
    """What decodes and resizes: `pillow-simd 12.1.1.post0, libjpeg-turbo 2.1.5, simplejpeg 1.9.0`."""
    name = "pillow-simd" if ".post" in PIL.__version__ else "pillow"
    jpeg = features.version("libjpeg_turbo") or features.version("jpg")
    return f"{name} {PIL.__version__}, libjpeg-turbo {jpeg}, simplejpeg {version('simplejpeg')}"


def _unidentified(start: bytes) -> ImageError:
    for name, mark in (("webp", b"WEBP"), ("avif", b"ftypavif")):
        if mark in start and not features.check(name):
            return ImageError("unsupported", f"{imaging_library()} was built without {name}")
    return ImageError("unreadable", f"none of {', '.join(FORMATS)}")


def _to_rgb(image: Image.Image) -> Image.Image:
    transparent = image.info.get("transparency")  # of a PNG or GIF: a colour, a grey, or palette entries
    if image.mode == "RGB" and transparent is None:
        return image
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint16)
        eight_bits = (values >> 8).astype(np.uint8)
        if isinstance(transparent, int):
            eight_bits[values == transparent] = 255
        return Image.fromarray(eight_bits).convert("RGB")
    if image.mode in ("I", "F"):
        return Image.fromarray(_to_eight_bits(np.asarray(image))).convert("RGB")
    if "A" in image.getbands() or transparent is not None:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _to_eight_bits(values: np.ndarray) -> np.ndarray:
    # 32-bit integers hold 16-bit pictures as PIL opens them; floats are 0..1 or already 0..255.
    with np.errstate(invalid="ignore"):  # of a NaN, which is black
        levels = np.nan_to_num(values.astype(np.float64), copy=False)
    top = float(levels.max(initial=0))
    full = (1.0 if top <= 1.0 else 255.0) if values.dtype.kind == "f" else (255.0 if top <= 255 else 65535.0)
    np.clip(levels, 0, full, out=levels)
    levels *= 255.0 / full
    return levels.astype(np.uint8)
