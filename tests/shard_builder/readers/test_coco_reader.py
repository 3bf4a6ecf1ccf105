"""The coco reader: nothing is left out unsaid, order does not matter, foreign files are named."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from core.errors import DataError
from shard_builder.readers.coco import read_coco
from shard_builder.rejected import count_by_reason


def coco_dataset(num_images: int, captions_each: int = 2) -> dict[str, Any]:
    names = {i: f"COCO_train2014_{i:012d}.jpg" for i in range(1, num_images + 1)}
    return {
        "info": {},
        "licenses": [],
        "images": [{"id": i, "file_name": name} for i, name in names.items()],
        "annotations": [
            {"id": 100 * k + i, "image_id": i, "caption": f"caption {k} of {i}"}
            for i in names
            for k in range(captions_each)
        ],
    }


def write_coco(folder: Path, dataset: Any, missing: tuple[str, ...] = ()) -> dict[str, Any]:
    images = folder / "train2014"
    images.mkdir(exist_ok=True)
    for image in dataset["images"]:
        if image["file_name"] not in missing:
            (images / image["file_name"]).write_bytes(b"")
    path = folder / "captions_train2014.json"
    path.write_text(json.dumps(dataset))
    return {"images": str(images), "captions": str(path)}


def test_records_do_not_depend_on_the_order_of_the_file(tmp_path: Path) -> None:
    dataset = coco_dataset(30, captions_each=5)
    expected = read_coco("train", **write_coco(tmp_path, dataset))
    for seed in range(3):
        shuffler = random.Random(seed)
        shuffler.shuffle(dataset["images"])
        shuffler.shuffle(dataset["annotations"])
        assert read_coco("train", **write_coco(tmp_path, dataset)) == expected
    assert [record.image_id for record in expected.records] == [str(i) for i in range(1, 31)]
    assert expected.records[8].captions == tuple(f"caption {k} of 9" for k in range(5))
    assert expected.records[8].image.endswith("train2014/COCO_train2014_000000000009.jpg")


def test_images_and_unknown_ids_all_end_as_records_or_skips(tmp_path: Path) -> None:
    dataset = coco_dataset(10)
    dataset["annotations"] = [a for a in dataset["annotations"] if a["image_id"] != 4]  # never captioned
    dataset["annotations"] += [{"id": 900, "image_id": 5, "caption": " \n\t "}]
    dataset["annotations"] += [{"id": 901 + k, "image_id": 77, "caption": "whose?"} for k in range(2)]
    result = read_coco("train", **write_coco(tmp_path, dataset, missing=("COCO_train2014_000000000002.jpg",)))
    assert count_by_reason(result.skipped) == {"missing_image": 1, "no_captions": 1, "unknown_image": 1}
    assert len(result.records) + len(result.skipped) == result.num_inputs == 11
    assert [skip.image_id for skip in result.skipped] == ["2", "4", "77"]
    assert "captions 901, 902" in result.skipped[2].detail
    assert result.records[2].captions == ("caption 0 of 5", "caption 1 of 5")  # the empty one is dropped


def test_captions_are_stripped_and_their_white_space_collapsed(tmp_path: Path) -> None:
    dataset = coco_dataset(1, captions_each=0)
    dataset["annotations"] = [{"id": 1, "image_id": 1, "caption": "  A dog\n runs\t\tfast .\u00a0 "}]
    assert read_coco("train", **write_coco(tmp_path, dataset)).records[0].captions == ("A dog runs fast .",)


def test_lone_surrogates_of_crawled_text_become_question_marks(tmp_path: Path) -> None:
    dataset = coco_dataset(1, captions_each=0)
    dataset["annotations"] = [{"id": 1, "image_id": 1, "caption": "a dog \ud83d"}]
    assert read_coco("train", **write_coco(tmp_path, dataset)).records[0].captions == ("a dog ?",)


def test_pycocotools_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read_coco("train", **write_coco(tmp_path, coco_dataset(2)))
    assert capsys.readouterr() == ("", "")


def test_the_real_samples_are_read_whole(shared_data: Path) -> None:
    for split, num_images, num_captions in (("train", 200, 1001), ("val", 100, 500)):
        result = read_coco(
            split,
            images=str(shared_data / "coco/images"),
            captions=str(shared_data / f"coco/annotations/captions_{split}.json"),
        )
        assert (len(result.records), len(result.skipped)) == (num_images, 0)
        assert sum(len(record.captions) for record in result.records) == num_captions


def test_photos_missing_from_the_official_val2017_file_are_counted(shared_data: Path) -> None:
    captions = shared_data / "coco/annotations/captions_val2017.json"
    result = read_coco("val", images=str(shared_data / "coco/images"), captions=str(captions))
    listed = {image["file_name"] for image in json.loads(captions.read_text())["images"]}
    present = {path.name for path in (shared_data / "coco/images").iterdir()} & listed
    assert len(result.records) == len(present) >= 100
    assert count_by_reason(result.skipped) == {"missing_image": 5000 - len(present)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [{"id": 1, "file_na', r"not JSON or ends early .*line 1, column .*Fetch the file again"),
        ("<html>", "not JSON or ends early"),
        ("[]", "no list 'images'"),
        ('{"images": []}', "lists no images"),
        ('{"images": [{"id": 1, "file_name": "1.jpg"}]}', "no list 'annotations'"),
        ('{"images": [{"id": 1}], "annotations": []}', "no 'id' or no 'file_name'"),
        (
            '{"images": [{"id": 1, "file_name": "1.jpg"}, {"id": 1, "file_name": "2.jpg"}], "annotations": []}',
            "two images have the id 1",
        ),
        (
            '{"images": [{"id": 1, "file_name": "1.jpg"}], '
            '"annotations": [{"id": 1, "image_id": 1, "category_id": 18, "segmentation": []}]}',
            r"holds instances, not captions\. Set source\.captions to COCO's captions_\*\.json",
        ),
        (
            '{"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [{"id": 1, "image_id": 1}]}',
            "lacks 'caption'",
        ),
    ],
)
def test_a_foreign_or_broken_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "captions.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as error:
        read_coco("train", images=str(tmp_path), captions=str(path))
    assert str(error.value).startswith(str(path))


def test_a_missing_file_or_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.json: no such file\. Set source\.captions"):
        read_coco("train", images=str(tmp_path), captions=str(tmp_path / "nowhere.json"))
    with pytest.raises(DataError, match=r"photos: no such folder\. Set source\.images"):
        read_coco("train", images=str(tmp_path / "photos"), captions="any.json")
    with pytest.raises(DataError, match="either captions .* or karpathy"):
        read_coco("train", images=str(tmp_path))


KARPATHY_ORDER = ("train", "restval", "val", "test", "restval", "train")


def write_karpathy(folder: Path, in_folders: bool) -> dict[str, Any]:
    images = []
    for number, split in enumerate(KARPATHY_ORDER):
        filepath = "train2014" if split == "train" else "val2014"
        filename = f"COCO_{filepath}_{100 - number:012d}.jpg"
        photo = folder / (filepath if in_folders else "") / filename
        photo.parent.mkdir(parents=True, exist_ok=True)
        photo.write_bytes(b"")
        sentences = [{"raw": f"second of {number}", "sentid": 2}, {"raw": f"first of {number}", "sentid": 1}]
        entry = {"split": split, "filepath": filepath, "filename": filename, "cocoid": 100 - number}
        images.append({**entry, "sentences": sentences, "imgid": number})
    path = folder / "dataset_coco.json"
    path.write_text(json.dumps({"images": images, "dataset": "coco"}))
    return {"images": str(folder), "karpathy": str(path)}


@pytest.mark.parametrize("in_folders", [True, False])
def test_karpathys_split_chooses_the_images(tmp_path: Path, in_folders: bool) -> None:
    options = write_karpathy(tmp_path, in_folders)
    ids = {split: [r.image_id for r in read_coco(split, **options).records] for split in ("train", "val", "test")}
    assert ids == {"train": ["95", "96", "99", "100"], "val": ["98"], "test": ["97"]}
    assert [r.image_id for r in read_coco("train", **options, restval=False).records] == ["95", "100"]
    assert read_coco("val", **options).records[0].captions == ("first of 2", "second of 2")


def test_a_wrong_karpathy_split_or_file_is_named(tmp_path: Path) -> None:
    options = write_karpathy(tmp_path, in_folders=True)
    with pytest.raises(DataError, match=r"no split 'tran'\. Did you mean 'train'\?"):
        read_coco("tran", **options)
    captions = tmp_path / "captions.json"
    captions.write_text(json.dumps(coco_dataset(1)))
    with pytest.raises(DataError, match="not as in Karpathy's file"):
        read_coco("train", images=str(tmp_path), karpathy=str(captions))
