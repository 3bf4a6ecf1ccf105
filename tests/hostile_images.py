"""Images that nobody should have to decode: sound ones of every kind, seeded mutations of them, and bombs.

Image workers import this file: no torch, no pytest.
"""

from __future__ import annotations

import io
import random
import struct
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, features

from core.image import ImageError
from core.manifest import ImageSpec
from shard_builder.writer import prepare_image

MAX_PIXELS = 4_000_000
STORED = ImageSpec(64)
REASONS = {"unreadable", "truncated", "too_many_pixels", "too_small", "unsupported"}
_EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)


@dataclass(frozen=True)
class Batch:
    """Images for one worker: mutations `numbers` of the originals, or the originals themselves."""

    name: str
    originals: tuple[tuple[str, bytes], ...]
    seed: int = 0
    numbers: range = range(0)  # empty: the originals as they are
    max_pixels: int = MAX_PIXELS

    def describe(self, position: int) -> str:
        return f"number {position} with seed {self.seed}"


@dataclass
class Findings:
    """What became of a batch."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)  # (kind, "kept" or the reason)
    slowest: tuple[float, str] = (0.0, "")  # seconds, and which image
    crashes: list[str] = field(default_factory=list)
    peak_bytes: int = 0  # of the worker, by which it exceeds what it held before
    stored: list[tuple[str, bytes, tuple[int, int]]] = field(default_factory=list)  # of originals that were kept


def judge(batch: Batch, report: Callable[[int], None]) -> Findings:
    """Send every image of the batch through the builder's own preparation; runs in a worker."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is that of this batch
    findings, before = Findings(), _memory_bytes("VmRSS")
    for number in batch.numbers or range(len(batch.originals)):
        kind, data = batch.originals[number % len(batch.originals)]
        if batch.numbers:
            data = mutated(data, batch.originals, random.Random(f"{batch.seed} {number}"))
        began = time.perf_counter()
        try:
            prepared = prepare_image(data, STORED, batch.max_pixels)
            outcome = "kept"
            if not batch.numbers:
                findings.stored.append((kind, prepared.data, (prepared.width, prepared.height)))
        except ImageError as error:
            outcome = error.reason
            if not (error.reason in REASONS and error.detail):
                findings.crashes.append(f"{kind} number {number}: the reason is {error}")
        except Exception as error:
            outcome = "crash"
            findings.crashes.append(f"{kind} number {number}: {error!r}")
        findings.outcomes[kind, outcome] += 1
        findings.slowest = max(findings.slowest, (time.perf_counter() - began, f"{kind} number {number}"))
        report(number - batch.numbers.start + 1 if batch.numbers else number + 1)
    findings.peak_bytes = _memory_bytes("VmHWM") - before
    return findings


def mutated(data: bytes, others: Sequence[tuple[str, bytes]], draw: random.Random) -> bytes:
    """One to four things go wrong with an image."""
    for _ in range(draw.choice((1, 1, 2, 4))):
        data = draw.choice(_MUTATIONS)(data or b"\0", others, draw)
    return data


def originals() -> tuple[tuple[str, bytes], ...]:
    """A sound picture of every kind that the builder meets, as far as this imaging library can write it."""
    y, x = np.mgrid[0:40, 0:56]
    picture = Image.fromarray(np.stack([x * 4, y * 6, 128 + 100 * np.sin(x / 5)], -1).astype(np.uint8))
    alpha = picture.copy()
    alpha.putalpha(picture.convert("L"))
    palette = picture.quantize(32)
    deep = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    more = [picture.rotate(90, expand=False), picture.rotate(180)]
    made = {
        "jpeg": encoded(picture, "JPEG", exif=exif),
        "jpeg progressive": encoded(picture, "JPEG", progressive=True),
        "jpeg grey": encoded(picture.convert("L"), "JPEG"),
        "jpeg cmyk": encoded(picture.convert("CMYK"), "JPEG"),
        "png": encoded(picture, "PNG"),
        "png alpha": encoded(alpha, "PNG"),
        "png palette": encoded(palette, "PNG", transparency=3),
        "png 16 bit": encoded(deep, "PNG"),
        "gif animated": encoded(palette, "GIF", save_all=True, append_images=more),
        "bmp": encoded(picture, "BMP"),
        "bmp palette": encoded(palette, "BMP"),
        "tiff": encoded(picture, "TIFF"),
        "tiff float": encoded(Image.fromarray(np.asarray(deep).astype(np.float32)), "TIFF"),
        "ppm": encoded(picture, "PPM"),
    }
    if features.check("libtiff"):
        made |= {f"tiff {c}": encoded(picture, "TIFF", compression=c) for c in ("tiff_lzw", "tiff_deflate", "jpeg")}
    if features.check("webp"):
        made |= {"webp": encoded(alpha, "WEBP"), "webp lossless": encoded(picture, "WEBP", lossless=True)}
        made["webp animated"] = encoded(picture, "WEBP", save_all=True, append_images=more)
    if features.check("avif"):
        made["avif"] = encoded(picture, "AVIF")
    return tuple(made.items())


def largest() -> tuple[tuple[str, bytes], ...]:
    """Sound pictures with as many pixels as are permitted, of the kinds that take most memory."""
    side = int(MAX_PIXELS**0.5)
    picture = Image.linear_gradient("L").resize((side, side)).convert("RGB")
    turned = Image.Exif()
    turned[0x0112] = 6
    grey = np.asarray(picture.convert("L"))
    return (
        ("jpeg progressive", encoded(picture, "JPEG", progressive=True, exif=turned)),
        ("jpeg cmyk", encoded(picture.convert("CMYK"), "JPEG", exif=turned)),
        ("png alpha", encoded(picture.convert("RGBA"), "PNG", exif=turned)),
        ("png transparent colour", encoded(picture, "PNG", transparency=(0, 0, 0), exif=turned)),
        ("png 16 bit", encoded(Image.fromarray(grey.astype(np.uint16) * 257), "PNG", transparency=0)),
        ("tiff float", encoded(Image.fromarray(grey.astype(np.float32)), "TIFF")),
        ("gif", encoded(picture.quantize(16), "GIF", transparency=0)),
    )


def bombs() -> tuple[tuple[str, bytes], ...]:
    """Small files that say they are gigapixels."""
    sound = dict(originals())
    size = 60_000
    start = sound["jpeg"].index(b"\xff\xc0")
    jpeg = sound["jpeg"][: start + 5] + struct.pack(">HH", size, size) + sound["jpeg"][start + 9 :]
    gif = sound["gif animated"]
    frame = gif.index(b"\x2c", 13 + 3 * 2 ** (1 + (gif[10] & 7)))
    bmp = sound["bmp"]
    made = {
        "jpeg": jpeg,
        "png": _png(size, size, zlib.compress(bytes(1_000_000))),
        "png text": _png(
            64, 64, zlib.compress(bytes(64 * 193)), (b"zTXt", b"a\0\0" + zlib.compress(bytes(200_000_000)))
        ),
        "png profile": _png(
            64, 64, zlib.compress(bytes(64 * 193)), (b"iCCP", b"a\0\0" + zlib.compress(bytes(2 * 10**8)))
        ),
        "gif screen": gif[:6] + struct.pack("<HH", size, size) + gif[10:],
        "gif frame": gif[: frame + 1] + struct.pack("<HHHH", 0, 0, size, size) + gif[frame + 9 :],
        "bmp": bmp[:18] + struct.pack("<ii", size, size) + bmp[26:],
        "ppm": b"P6 60000 60000 255\n" + bytes(1000),
        "tiff": _tiff(size, size, tile=None),
        "tiff tile": _tiff(64, 64, tile=size),
    }
    if "webp animated" in sound:
        webp = sound["webp animated"]
        canvas = webp.index(b"VP8X") + 12
        made["webp"] = webp[:canvas] + (16383).to_bytes(3, "little") * 2 + webp[canvas + 6 :]
    return tuple(made.items())


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """The picture in a file of that kind."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _png(width: int, height: int, pixels: bytes, *more: tuple[bytes, bytes]) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), *more, (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def _tiff(width: int, height: int, tile: int | None) -> bytes:
    """A deflated grey TIFF, in one strip or one tile."""
    data = zlib.compress(bytes(1_000_000))
    place = (
        [(322, tile), (323, tile), (324, 8), (325, len(data))] if tile else [(273, 8), (278, height), (279, len(data))]
    )
    tags = sorted([(256, width), (257, height), (258, 8), (259, 8), (262, 1), (277, 1), *place])
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def _flip(data: bytes, others: object, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.randrange(1, 8)):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _insert(data: bytes, others: object, draw: random.Random) -> bytes:
    place = draw.randrange(len(data))
    return data[:place] + draw.randbytes(draw.randrange(1, 20)) + data[place:]


def _cut(data: bytes, others: object, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data))]


def _drop(data: bytes, others: object, draw: random.Random) -> bytes:
    place = draw.randrange(len(data))
    return data[:place] + data[place + draw.randrange(1, 40) :]


def _edit_header(data: bytes, others: object, draw: random.Random) -> bytes:
    size = draw.choice((1, 2, 4))
    value = (draw.choice(_EXTREMES) & (256**size - 1)).to_bytes(size, draw.choice(("little", "big")))
    place = draw.randrange(min(len(data), 200))
    return data[:place] + value + data[place + size :]


def _swap_chunks(data: bytes, others: object, draw: random.Random) -> bytes:
    a, b, c, d = sorted(draw.randrange(len(data)) for _ in range(4))
    return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def _repeat(data: bytes, others: object, draw: random.Random) -> bytes:
    a, b = sorted(draw.randrange(len(data)) for _ in range(2))
    return data[:b] + data[a:b] * draw.randrange(1, 5) + data[b:]


def _splice(data: bytes, others: Sequence[tuple[str, bytes]], draw: random.Random) -> bytes:
    other = draw.choice(others)[1]
    return data[: draw.randrange(len(data))] + other[draw.randrange(len(other)) :]


_MUTATIONS = (_flip, _flip, _insert, _cut, _drop, _edit_header, _edit_header, _swap_chunks, _repeat, _splice)


def _memory_bytes(which: str) -> int:
    # Not ru_maxrss: a child inherits its parent's over exec, and nothing resets it.
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split(f"{which}:")[1].split()[0])
