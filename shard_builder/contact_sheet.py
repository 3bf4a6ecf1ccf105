"""Pictures of random samples with their captions: what one looks at before training."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from core.image import decode_into
from core.manifest import Manifest
from core.seeding import permutation
from core.shard_set import ShardSet
from shard_builder.pen import Pen

CONTACT_SHEET_NAME = "contact_sheet.jpg"
COLUMNS, ROWS = 6, 4
TILE, GAP, MARGIN = 224, 22, 36  # pixels
CAPTION_LINES, LINE_HEIGHT = 3, 18
NAME_LETTERS = 22  # of an image's id, so that captions left out are still counted beside it
PAPER, INK, FAINT = (250, 250, 248), (32, 33, 36), (128, 130, 134)


@dataclass(frozen=True)
class Tile:
    """One picture of a sheet."""

    image: np.ndarray  # (S, S, 3) uint8
    caption: str
    note: str  # small and faint, below the caption


def contact_sheet(shard_set: ShardSet, title: str, seed: int) -> bytes:
    """The JPEG of `contact_sheet.jpg`: random samples of a whole set; equal sets give equal bytes."""
    samples = permutation(len(shard_set), seed, "contact sheet")[: COLUMNS * ROWS]
    tiles = [tile_of(shard_set, int(sample)) for sample in sorted(samples)]
    return encode_sheet(draw_sheet(tiles, title, summary_of(shard_set.manifests[0])), "JPEG")


def tile_of(shard_set: ShardSet, sample: int, query: str = "", marks: str = "") -> Tile:
    """The picture of a sample, and the first of its captions that contains `query`.

    Args:
        marks: for the note, before the image's id and in place of the label in the sample's json.
    """
    size = shard_set.image.size
    image = np.empty((size, size, 3), np.uint8)
    decode_into(shard_set.member(sample, "image"), shard_set.image_spec(sample), image)
    captions, info = shard_set.captions(sample), shard_set.info(sample)
    more = f"+{len(captions) - 1} captions" if len(captions) > 1 else ""
    image_id = _end_of(str(info.get("image_id") or shard_set.key(sample)))
    notes = (marks, image_id, more) if marks else (image_id, info.get("label"), more)
    caption = next((caption for caption in captions if contains(caption, query)), captions[0])
    return Tile(image, caption, "   ".join(note for note in notes if note))


def _end_of(name: str) -> str:
    """What tells a picture from its neighbours: of a long path the end, where the file's name is."""
    return name if len(name) <= NAME_LETTERS else "…" + name[1 - NAME_LETTERS :]


def contains(caption: str, query: str) -> bool:
    """Whether the text occurs, in any case."""
    return query.lower() in caption.lower()


def summary_of(manifest: Manifest) -> str:
    """A set in one line."""
    image, encoder = manifest.image, manifest.text_encoder
    parts = [
        f"{manifest.num_samples:,} images",
        f"{manifest.num_captions:,} captions",
        f"{image.size} px {image.fit}, {image.codec}" + (f" {image.quality}" if image.codec == "jpeg" else ""),
        f"{encoder.name}, {encoder.embed_dim} wide" if encoder else "no embeddings",
        f"{sum(manifest.skipped.values()):,} left out",
    ]
    return "   ·   ".join(parts)


def draw_sheet(tiles: Sequence[Tile], title: str, subtitle: str) -> Image.Image:
    """The tiles in rows under a heading."""
    columns = min(COLUMNS, max(3, len(tiles)))
    cell = (TILE + GAP, TILE + 14 + (CAPTION_LINES + 1) * LINE_HEIGHT + GAP)
    top = MARGIN + 76
    size = (2 * MARGIN + columns * cell[0] - GAP, top + -(-len(tiles) // columns) * cell[1] - GAP + MARGIN)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    _write_line(sheet, Pen(26, bold=True), (MARGIN, MARGIN - 8), title, size[0] - 2 * MARGIN, INK)
    _write_line(sheet, Pen(14), (MARGIN, MARGIN + 30), subtitle, size[0] - 2 * MARGIN, FAINT)
    draw.line((MARGIN, top - 18, size[0] - MARGIN, top - 18), (222, 222, 218), 1)
    for number, tile in enumerate(tiles):
        corner = (MARGIN + number % columns * cell[0], top + number // columns * cell[1])
        _draw_tile(sheet, tile, corner)
    return sheet


def encode_sheet(sheet: Image.Image, form: str) -> bytes:
    """The sheet as `JPEG` or `PNG` bytes."""
    buffer = io.BytesIO()
    sheet.save(buffer, form, **({"quality": 90, "subsampling": 0} if form == "JPEG" else {}))
    return buffer.getvalue()


def _draw_tile(sheet: Image.Image, tile: Tile, corner: tuple[int, int]) -> None:
    picture = Image.fromarray(tile.image).resize((TILE, TILE), Image.Resampling.LANCZOS)
    sheet.paste(picture, corner, _rounded_corners())
    x, y = corner[0], corner[1] + TILE + 8
    for line in Pen(13).wrapped(tile.caption, TILE, CAPTION_LINES):
        Pen(13).write(sheet, (x, y), line, INK)
        y += LINE_HEIGHT
    _write_line(sheet, Pen(11), (x, y + 1), tile.note, TILE, FAINT)


def _write_line(
    sheet: Image.Image, pen: Pen, corner: tuple[int, int], text: str, width: int, colour: tuple[int, int, int]
) -> None:
    pen.write(sheet, corner, pen.clipped(pen.shown(text), width), colour)


@lru_cache
def _rounded_corners() -> Image.Image:
    mask = Image.new("L", (4 * TILE, 4 * TILE), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, 4 * TILE - 1, 4 * TILE - 1), 32, 255)
    return mask.resize((TILE, TILE), Image.Resampling.LANCZOS)
