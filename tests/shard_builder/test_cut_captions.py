"""Captions that the text encoder cuts: counted in summary and manifest, named in a file, marked in a preview."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_encoder import FakeEncoder
from photo_folders import quick_recipe, write_photos
from rich.console import Console

from core.config import Choice
from core.manifest import load_manifest
from core.text_encoders import TEXT_ENCODERS
from shard_builder.build import build_shards
from shard_builder.cut_captions import cut_captions, cut_lines
from shard_builder.preview import preview
from shard_builder.records import Record
from shard_builder.verify import verify

LONG = "a boat on a lake with more said of it than thirty-two letters"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TEXT_ENCODERS, "fake", FakeEncoder)


@pytest.mark.parametrize("letters", [31, 32, 33])
def test_a_caption_is_cut_that_has_more_tokens_than_the_encoder_takes(fake: None, letters: int) -> None:
    captions = ["a", "b" * letters]
    assert cut_captions(Choice("fake"), captions) == captions[1:] * (letters > 32)  # a letter is a token of this one


def test_short_captions_need_no_tokenizer(fake: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeEncoder, "tokenize", None)
    assert cut_captions(Choice("fake"), ["a dog"] * 3) == []


def test_a_build_says_which_and_how_many(tmp_path: Path, fake: None) -> None:
    photos = write_photos(tmp_path / "photos", 9)
    lines = [json.loads(line) for line in photos.read_text().splitlines()]
    for number in (2, 5):
        lines[number]["captions"].append(LONG)
    photos.write_text("".join(json.dumps(line) + "\n" for line in lines))
    console = Console(file=io.StringIO(), width=200)
    config = quick_recipe(photos, tmp_path / "out", tmp_path / "cache")
    build_shards(config, console)
    assert "2 are longer than the text encoder takes" in console.file.getvalue()  # type: ignore[attr-defined]
    assert load_manifest(config.out).num_cut_captions == 2
    listed = [json.loads(line) for line in (tmp_path / "out" / "cut_captions.jsonl").read_text().splitlines()]
    assert [(line["image_id"], line["caption"]) for line in listed] == [("002.jpg", LONG), ("005.jpg", LONG)]
    assert not verify(config.out, workers=1, console=Console(file=io.StringIO()))
    preview(config.out, tmp_path / "p.png", console=console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert said.count("(cut by the text encoder)") == 2 and "2 captions are longer" in said


def test_however_many_captions_there_are_those_that_are_cut_are_gone_through_once() -> None:
    class Counted(list[str]):
        readings = 0

        def __iter__(self) -> Iterator[str]:
            self.readings += 1
            return super().__iter__()

        def __contains__(self, caption: object) -> bool:
            raise AssertionError("a search through the whole list for each caption")

    cut = Counted(["b", "d"])
    records = [Record(str(n), "s", f"{n}.jpg", captions) for n, captions in enumerate([("a", "b"), ("b", "c", "d")])]
    found = [(line["image_id"], line["caption"]) for line in cut_lines(records, cut)]
    assert found == [("0", "b"), ("1", "b"), ("1", "d")] and cut.readings == 1


def test_without_any_nothing_is_written(tmp_path: Path, fake: None) -> None:
    config = quick_recipe(write_photos(tmp_path / "photos", 4), tmp_path / "out", tmp_path / "cache")
    build_shards(config, Console(file=io.StringIO()))
    assert load_manifest(config.out).num_cut_captions == 0
    assert not (tmp_path / "out" / "cut_captions.jsonl").exists()


def test_a_preview_cuts_what_no_table_has_room_for(tmp_path: Path, fake: None) -> None:
    photos = tmp_path / "photos"
    file = write_photos(photos, 2)
    lines = [json.loads(line) | {"captions": ["word " * 200]} for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = quick_recipe(file, tmp_path / "out", tmp_path / "cache")
    build_shards(config, Console(file=io.StringIO()))
    console = Console(file=io.StringIO(), width=2000)
    preview(config.out, tmp_path / "p.png", console=console)
    assert console.file.getvalue().count("word") < 2 * 60 and "…" in console.file.getvalue()  # type: ignore[attr-defined]
