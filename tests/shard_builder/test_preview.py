"""Pictures of samples: readable captions, the samples that were asked for, equal bytes for equal sets."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from shard_sets import make_shard_set

from core.errors import DataError
from core.shard_set import ShardSet
from shard_builder.contact_sheet import CAPTION_LINES, TILE, contact_sheet, tile_of
from shard_builder.pen import Pen
from shard_builder.preview import preview


@pytest.fixture
def url(tmp_path: Path) -> str:
    return make_shard_set(tmp_path / "set", 30)


def test_a_preview_draws_as_many_samples_as_asked(tmp_path: Path, url: str, console: Console) -> None:
    samples = preview(url, tmp_path / "some.png", count=7, seed=1, console=console)
    assert len(set(samples)) == 7
    with Image.open(tmp_path / "some.png") as picture:
        assert (picture.format, picture.mode) == ("PNG", "RGB")
        assert picture.width > 6 * TILE and picture.height > 2 * TILE
        assert np.asarray(picture).std() > 20
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(f"caption 4 of image {sample}" in text for sample in samples)
    assert "some.png" in text


def test_a_query_chooses_by_any_caption_in_any_case(tmp_path: Path, url: str, console: Console) -> None:
    assert preview(url, tmp_path / "x.jpg", query="CAPTION 3 of image 17", console=console) == [17]
    with pytest.raises(DataError, match="no caption contains 'zebra'"):
        preview(url, tmp_path / "y.png", query="zebra", console=console)
    assert not (tmp_path / "y.png").exists()


def test_the_seed_decides_which(tmp_path: Path, url: str, console: Console) -> None:
    drawn = [preview(url, tmp_path / "a.png", count=5, seed=seed, console=console) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_contact_sheet_is_the_same_bytes_twice(url: str) -> None:
    sheet = contact_sheet(ShardSet.open(url), "test", 0)
    assert sheet == contact_sheet(ShardSet.open(url), "test", 0)
    assert sheet != contact_sheet(ShardSet.open(url), "test", 1)
    with Image.open(io.BytesIO(sheet)) as picture:
        assert picture.format == "JPEG"


@pytest.mark.parametrize(
    "caption",
    [
        "a dog",
        "",
        "a very long caption " * 20,
        "Donaudampfschifffahrtsgesellschaftskapitänsmützenabzeichen" * 3,
        "狗在海滩上奔跑" * 20,
        "a\nline\tbreak",
    ],
)
def test_captions_are_wrapped_within_the_tile(caption: str) -> None:
    pen = Pen(13)
    lines = pen.wrapped(caption, TILE, CAPTION_LINES)
    assert 1 <= len(lines) <= CAPTION_LINES
    assert all(pen.length(line) <= TILE for line in lines)
    shown = "".join(lines).replace(" ", "")
    whole = pen.shown("".join(caption.split()))
    assert shown == whole or (shown.endswith("…") and whole.startswith(shown[:-1]))


def test_brackets_in_captions_are_no_markup(tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    url = make_shard_set(tmp_path / "set2", 3, num_captions=1)
    monkeypatch.setattr(ShardSet, "captions", lambda self, sample: ["[red]stop[/red] sign"])
    preview(url, tmp_path / "a.png", console=console)
    assert "[red]stop[/red]" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_query_shows_the_caption_that_matched(url: str) -> None:
    shard_set = ShardSet.open(url)
    assert tile_of(shard_set, 3).caption == "caption 0 of image 3"
    assert tile_of(shard_set, 3, "CAPTION 2").caption == "caption 2 of image 3"


def test_a_long_name_keeps_the_end_that_tells_pictures_apart(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = "family/2019/summer/holidays in the mountains/second week/IMG_2034.jpg"
    monkeypatch.setattr(ShardSet, "info", lambda self, sample: {"image_id": path})
    note = tile_of(ShardSet.open(url), 3).note
    assert note.startswith("…") and note.endswith("IMG_2034.jpg")
    assert Pen(11).length(note + "   +4 captions") <= TILE
