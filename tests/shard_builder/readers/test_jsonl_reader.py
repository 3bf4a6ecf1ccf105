"""The jsonl reader: paths, merging, splits that do not depend on order, and lines that are wrong."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from core.errors import DataError
from shard_builder.readers.jsonl import read_jsonl
from shard_builder.rejected import count_by_reason


def write(folder: Path, lines: list[Any], photos: bool = True) -> str:
    path = folder / "photos.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    for line in lines if photos else []:
        (folder / line["image"]).parent.mkdir(parents=True, exist_ok=True)
        (folder / line["image"]).write_bytes(b"")
    return str(path)


def numbered(count: int) -> list[dict[str, Any]]:
    return [{"image": f"img/{i:04d}.jpg", "captions": [f"number {i}", "a thing"]} for i in range(count)]


def test_the_drawn_split_is_by_image_in_the_stated_shares_and_complete(tmp_path: Path) -> None:
    file = write(tmp_path, numbered(2000))
    ids = {split: {r.image_id for r in read_jsonl(split, file=file).records} for split in ("train", "val", "test")}
    assert set.union(*ids.values()) == {f"img/{i:04d}.jpg" for i in range(2000)}
    assert sum(map(len, ids.values())) == 2000
    assert abs(len(ids["train"]) - 1400) < 80 and abs(len(ids["val"]) - 300) < 60  # 4 standard deviations
    assert ids["val"] != {r.image_id for r in read_jsonl("val", file=file, seed=1).records}


def test_an_images_split_survives_shuffled_and_dropped_lines(tmp_path: Path) -> None:
    lines = numbered(300)
    expected = read_jsonl("val", file=write(tmp_path, lines))
    random.Random(0).shuffle(lines)
    assert read_jsonl("val", file=write(tmp_path, lines)) == expected
    kept = {record.image_id for record in read_jsonl("val", file=write(tmp_path, lines[:150])).records}
    assert kept == {r.image_id for r in expected.records} & {line["image"] for line in lines[:150]}


def test_named_splits_are_obeyed(tmp_path: Path) -> None:
    lines = [{**line, "split": "dev" if i % 3 == 0 else "train"} for i, line in enumerate(numbered(9))]
    file = write(tmp_path, lines)
    assert [r.image_id for r in read_jsonl("dev", file=file).records] == [f"img/{i:04d}.jpg" for i in (0, 3, 6)]
    with pytest.raises(DataError, match=r"no split 'val'\. Known: dev, train"):
        read_jsonl("val", file=file)


def test_lines_of_one_image_are_merged(tmp_path: Path) -> None:
    lines = [
        {"image": "a.jpg", "caption": "one", "split": "train"},
        {"image": "b.jpg", "captions": ["other"], "label": "dog", "split": "train"},
        {"image": "a.jpg", "captions": ["two", "  "], "label": "cat", "id": 17},
    ]
    result = read_jsonl("train", file=write(tmp_path, lines))
    assert [(r.image_id, r.captions, r.label) for r in result.records] == [
        ("17", ("one", "two"), "cat"),
        ("b.jpg", ("other",), "dog"),
    ]
    assert result.classes == ("cat", "dog")


def test_paths_are_relative_to_the_file_and_gaps_are_counted(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.jpg").write_bytes(b"")
    lines = [
        {"image": "../a.jpg", "caption": "up", "split": "x"},
        {"image": str(tmp_path / "a.jpg"), "caption": "absolute", "split": "x"},
        {"image": "https://example.org/a.jpg", "caption": "on the web", "split": "x"},
        {"image": "nowhere/a.jpg", "caption": "missing", "split": "x"},
        {"image": "../a.jpg".replace("a", "b"), "captions": [], "split": "x"},
    ]
    (tmp_path / "b.jpg").write_bytes(b"")
    result = read_jsonl("x", file=write(tmp_path / "sub", lines, photos=False))
    assert sorted(record.captions[0] for record in result.records) == ["absolute", "on the web", "up"]
    assert count_by_reason(result.skipped) == {"missing_image": 1, "no_captions": 1}
    assert result.num_inputs == len(lines)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"image": "a.jpg", ', r":2: is not JSON"),
        ("[1]", r":2: is not an object"),
        ('{"image": "b.jpg", "captoins": ["x"]}', r":2: unknown key 'captoins'\. Did you mean 'captions'\?"),
        ('{"captions": ["x"]}', r":2: 'image' is missing"),
        ('{"image": "b.jpg"}', r":2: needs either 'captions'"),
        ('{"image": "b.jpg", "caption": "x", "captions": ["x"]}', r":2: needs either 'captions'"),
        ('{"image": "b.jpg", "captions": "x"}', r":2: 'captions' is a list of texts"),
        ('{"image": "b.jpg", "caption": "x", "split": 3}', r":2: 'split' is 3"),
        ('{"image": "b.jpg", "caption": "x"}', r":2: 'b\.jpg' has no split, other lines have one"),
        ('{"image": "a.jpg", "caption": "x", "split": "val"}', r":2: 'a\.jpg' has split 'val' here, 'train' on an"),
        ('{"image": "b.jpg", "caption": "x", "id": "a.jpg", "split": "train"}', r":2: id 'a\.jpg' also belongs to"),
    ],
)
def test_a_wrong_line_is_named_by_file_and_number(tmp_path: Path, line: str, message: str) -> None:
    file = write(tmp_path, [{"image": "a.jpg", "caption": "x", "split": "train"}, line], photos=False)
    with pytest.raises(DataError, match=message) as error:
        read_jsonl("train", file=file)
    assert str(error.value).startswith(file)


def test_an_empty_file_and_an_empty_split_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no lines"):
        read_jsonl("train", file=write(tmp_path, [""], photos=False))
    with pytest.raises(DataError, match="no image fell into split"):
        for split in ("train", "val", "test"):
            read_jsonl(split, file=write(tmp_path, numbered(1)))
    with pytest.raises(DataError, match=r"no split 'valid'\. Did you mean 'val'\?"):
        read_jsonl("valid", file=write(tmp_path, numbered(5)))
