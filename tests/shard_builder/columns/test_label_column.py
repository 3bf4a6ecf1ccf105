"""Labels: what the file says, sample by sample; what it says to nobody is counted, what it says twice is refused."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from column_sets import add
from photo_folders import folder_bytes
from rich.console import Console

from core.errors import DataError
from core.shard_set import ShardSet
from shard_builder.columns.labels import read_labels


def names_of(folder: Path, name: str = "labels") -> list[str | None]:
    """The label of each sample by the column."""
    column = ShardSet.open(str(folder), text="" if folder.name == "built" else None).column(name)
    return [column.classes[n] if n >= 0 else None for n in column.all_rows().tolist()]


def test_a_build_makes_the_column_that_is_made_later(built: Path, cache: Path) -> None:
    shard_set = ShardSet.open(str(built))
    assert names_of(built) == [shard_set.info(n)["label"] for n in range(len(shard_set))]
    made = folder_bytes(built)
    (head,) = add("labels", built, cache=cache)
    assert head.classes == shard_set.classes and folder_bytes(built) == made
    shutil.rmtree(built / "columns")
    add("labels", built, cache=cache)
    assert folder_bytes(built) == made


@pytest.mark.parametrize("form", ["csv", "jsonl"])
@pytest.mark.parametrize("by", ["key", "image_id"])
def test_labels_equal_the_file_by_a_plain_loop(built: Path, cache: Path, tmp_path: Path, form: str, by: str) -> None:
    shard_set, draw = ShardSet.open(str(built)), np.random.default_rng(len(form + by))
    ids = [shard_set.key(n) if by == "key" else shard_set.info(n)["image_id"] for n in range(len(shard_set))]
    rows = {own: draw.choice(["a, b", 'c "d"', "é", "7"]) for own in ids if draw.random() < 0.7}
    rows |= {"nobody": "a, b", "no one": "z"}
    file = tmp_path / f"labels.{form}"
    if form == "csv":
        buffer = io.StringIO()
        csv.writer(buffer).writerows([["split", "label", by], *(["x", label, own] for own, label in rows.items())])
        file.write_text("\ufeff" + buffer.getvalue(), encoding="utf-8")
    else:
        file.write_text("".join(json.dumps({by: own, "label": str(label)}) + "\n\n" for own, label in rows.items()))
    (head,) = add("labels", built, cache=cache, file=str(file), name="mine")
    assert names_of(built, "mine") == [rows.get(own) for own in ids]
    assert head.classes == tuple(sorted({rows[own] for own in ids if own in rows}))
    assert head.figures["unknown_rows"] == 2 and head.figures["unlabelled"] == sum(own not in rows for own in ids)


def test_classes_may_be_ordered_but_not_left_out(built: Path, cache: Path) -> None:
    order = ("train", "hill", "girl", "dog", "boat")
    (head,) = add("labels", built, cache=cache, classes=",".join(order), name="mine")
    assert head.classes == order and names_of(built, "mine") == names_of(built)
    with pytest.raises(DataError, match="label 'boat' is not among the 1 classes. Add it to classes="):
        add("labels", built, cache=cache, classes="dog", name="other")
    with pytest.raises(DataError, match="classes names 'dog' twice"):
        add("labels", built, cache=cache, classes="dog,dog", name="other")


def test_an_image_that_stands_twice_has_one_label_and_a_key_that_does_is_refused(
    adopted: Path, cache: Path, tmp_path: Path
) -> None:
    (tmp_path / "by_id.csv").write_text("image_id,label\nid.0,x\nid.4,y\n")
    add("labels", adopted, cache=cache, file=str(tmp_path / "by_id.csv"))
    assert names_of(adopted).count("x") == 2 and names_of(adopted).count("y") == 4
    (tmp_path / "by_key.csv").write_text("key,label\n0000,x\n")
    with pytest.raises(DataError, match="key '0000' stands for samples of 2 kinds .*Label by image_id"):
        add("labels", adopted, cache=cache, file=str(tmp_path / "by_key.csv"), name="other")
    with pytest.raises(DataError, match="no sample's json has a label. Give them in a file"):
        add("labels", adopted, cache=cache, name="other")


def test_what_the_file_leaves_out_is_said(built: Path, cache: Path, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    (tmp_path / "l.csv").write_text("key,label\n000000001,dog\nnobody,cat\n000000002,\n")
    add("labels", built, cache=cache, console=console, file=str(tmp_path / "l.csv"), name="mine")
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "1 rows of the file belong to no sample" in said and "19 of 20 samples" in said


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("id,class\n1,dog\n", "has the columns 'id', 'class'. Name them `key` or `image_id`, and `label`"),
        ("key,label\nx,dog\nx,cat\n", "line 3: key 'x' is 'cat', a line before it says 'dog'"),
        ("key,label\nx,dog,cat\n", "line 2 has more cells than the header"),
        ("key,label\n,dog\n", "line 2 has no 'key'"),
        ("key,label\n", "has no rows"),
        ('key,label\nx,"dog', "line 2 is no CSV"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_its_line(content: str, sentence: str) -> None:
    with pytest.raises(DataError, match="labels.csv: " + sentence.replace("(", r"\(")):
        read_labels("labels.csv", content.encode())


def test_json_lines_that_cannot_be_used_are_named() -> None:
    for content, sentence in (("{", "line 1 is no JSON"), ("3", "no JSON object"), ('{"key": "a"}', "has the columns")):
        with pytest.raises(DataError, match=sentence):
            read_labels("labels.jsonl", content.encode())
    with pytest.raises(DataError, match="is no UTF-8 text"):
        read_labels("labels.csv", "key,label\nx,caf\xe9\n".encode("latin-1"))


def test_a_file_of_another_set_is_an_error(built: Path, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("image_id,label\nCOCO_1,dog\n")
    before = folder_bytes(built)
    with pytest.raises(DataError, match=r"none of its 1 image_ids is in .*built: the file has 'COCO_1', the set '0"):
        add("labels", built, cache=cache, file=str(tmp_path / "l.csv"), name="mine")
    assert folder_bytes(built) == before
