"""The imagenet reader: names of classes from each of the three files, Kaggle's parts merged, homonyms told apart."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from fake_encoder import FakeEncoder
from photo_folders import picture, quick_recipe
from rich.console import Console

from core.config import Choice
from core.errors import DataError
from core.shard_set import ShardSet
from core.text_encoders import TEXT_ENCODERS
from shard_builder.build import build_shards
from shard_builder.readers.imagenet import read_imagenet
from shard_builder.verify import verify

NAMES = {
    "n01440764": "tench, Tinca tinca",
    "n02066245": "grey whale, gray whale, devilfish",
    "n02012849": "crane",
    "n03126707": "crane",
    "n03710637": "maillot",
    "n03710721": "maillot, tank suit",
    "n02113186": "Cardigan, Cardigan Welsh corgi",
    "n02963159": "cardigan",
}
MAPPING = "".join(f"{wnid} {names}\n" for wnid, names in NAMES.items())
INDEX = {str(k): [wnid, own.split(",")[0].replace(" ", "_")] for k, (wnid, own) in enumerate(NAMES.items())}
FIRST = {"n01440764": "tench", "n02066245": "grey whale"}
TOLD_APART = {
    "n02012849": "crane bird",
    "n03126707": "construction crane",
    "n03710637": "maillot",
    "n03710721": "tank suit",
    "n02113186": "Cardigan Welsh corgi",
    "n02963159": "cardigan",
}


def write(folder: Path, *files: str) -> str:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return str(folder)


def names_file(folder: Path, text: str, name: str = "names") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


@pytest.mark.parametrize(
    "text",
    [MAPPING, MAPPING.replace("\n", "\r\n"), json.dumps(NAMES), json.dumps(INDEX)],
    ids=["loc", "crlf", "labels", "index"],
)
def test_classes_are_called_by_their_first_synonym(tmp_path: Path, text: str) -> None:
    folder = write(tmp_path / "train", *(f"{wnid}/{wnid}_1.JPEG" for wnid in NAMES), "n02066245/notes.txt")
    result = read_imagenet("train", folders=(folder,), classes=names_file(tmp_path, text))
    assert {r.image_id.split("/")[0]: r.label for r in result.records} == FIRST | TOLD_APART
    assert [record.image_id for record in result.records] == sorted(f"{wnid}/{wnid}_1.JPEG" for wnid in NAMES)
    assert result.records[0].captions == ("a photo of a tench.",)
    assert result.classes == tuple(sorted((FIRST | TOLD_APART).values())) and result.captions == "of classes"
    assert [(skip.image_id, skip.reason) for skip in result.skipped] == [("n02066245/notes.txt", "not_an_image")]


def test_kaggles_parts_are_one_set_whatever_their_order(tmp_path: Path) -> None:
    labels = names_file(tmp_path, json.dumps(NAMES), "Labels.json")
    parts = [write(tmp_path / f"train.X{k}", f"{wnid}/{k}.JPEG") for k, wnid in enumerate(NAMES, 1)]
    parts.append(write(tmp_path / "more", "n01440764/9.JPEG"))  # a class may lie in several
    result = read_imagenet("train", folders=tuple(parts), classes=labels)
    assert len(result.records) == 9 and len(result.classes) == 8
    assert [r.image_id for r in result.records if r.label == "tench"] == ["n01440764/1.JPEG", "n01440764/9.JPEG"]
    assert read_imagenet("train", folders=tuple(reversed(parts)), classes=labels) == result


def test_a_subset_calls_its_classes_as_the_whole_does(tmp_path: Path) -> None:
    folder = write(tmp_path / "val", "n02012849/1.JPEG")
    result = read_imagenet("val", folders=(folder,), classes=names_file(tmp_path, MAPPING))
    assert result.classes == ("crane bird",)
    alone = read_imagenet("val", folders=(folder,), classes=names_file(tmp_path, "n02012849 crane\n"))
    assert alone.classes == ("crane",)


def test_a_set_keeps_all_synonyms_and_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TEXT_ENCODERS, "fake", FakeEncoder)
    for number in range(6):
        path = tmp_path / "val.X" / list(FIRST)[number % 2] / f"{number}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number, (40, 40)))
    source = {
        "folders": str(tmp_path / "val.X"),
        "classes": names_file(tmp_path, MAPPING),
        "templates": ["a {}", "the {}"],
    }
    config = quick_recipe(Path(), tmp_path / "set", tmp_path / "cache", source=Choice("imagenet", source))
    build_shards(config, Console(file=io.StringIO()))
    shard_set = ShardSet.open(config.out)
    infos = [shard_set.info(sample) for sample in range(6)]
    assert {tuple(info["synonyms"]) for info in infos} == {
        ("tench", "Tinca tinca"), ("grey whale", "gray whale", "devilfish"),
    }  # fmt: skip
    assert all(info["captions"] == [f"a {info['label']}", f"the {info['label']}"] for info in infos)
    assert shard_set.class_captions and verify(config.out, Console(file=io.StringIO())) == []


def test_wrong_folders_and_files_are_named(tmp_path: Path) -> None:
    good, names = write(tmp_path / "good", "n01440764/1.JPEG"), names_file(tmp_path, MAPPING)
    parent = write(tmp_path / "kaggle", "train.X1/n01440764/1.JPEG")
    with pytest.raises(DataError, match=r"'train\.X1' is not named by a WordNet id\. Set source\.folders"):
        read_imagenet("train", folders=(parent,), classes=names)
    with pytest.raises(DataError, match="no folder in it is named"):
        read_imagenet("train", folders=(write(tmp_path / "flat", "1.JPEG"),), classes=names)
    with pytest.raises(DataError, match=r"lacks 1 of the class folders \(n99999999\)"):
        read_imagenet("train", folders=(good, write(tmp_path / "other", "n99999999/1.JPEG")), classes=names)
    with pytest.raises(DataError, match=r"nowhere: no such file\. Set source\.classes"):
        read_imagenet("train", folders=(good,), classes=str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="n00000001 and n00000002 are both class 'Cat'"):
        both = names_file(tmp_path, "n00000001 cat\nn00000002 Cat, tom\n", "both")
        read_imagenet("train", folders=(good,), classes=both)
    with pytest.raises(DataError, match="local disk"):
        read_imagenet("train", folders=("s3://bucket/train",), classes=names)
    with pytest.raises(DataError, match="hold no images"):
        read_imagenet("train", folders=(write(tmp_path / "empty", "n01440764/x.txt"),), classes=names)


@pytest.mark.parametrize(
    "text", ["", "tench\n", "{", '{"0": ["n01440764"]}', '{"0": 1}', '["n01440764"]', "n01440764\n"]
)
def test_a_file_that_names_no_classes_is_refused(tmp_path: Path, text: str) -> None:
    folder = write(tmp_path / "good", "n01440764/1.JPEG")
    with pytest.raises(DataError, match="does not say what classes such as n01440764 are called"):
        read_imagenet("train", folders=(folder,), classes=names_file(tmp_path, text))
