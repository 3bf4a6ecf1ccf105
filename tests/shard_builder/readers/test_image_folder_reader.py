"""The image folder reader: classes from folders, captions from templates."""

from pathlib import Path

import pytest

from core.errors import DataError
from shard_builder.readers.image_folder import read_image_folder


def write(folder: Path, *names: str) -> str:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return str(folder)


def test_class_names_become_labels_and_captions(tmp_path: Path) -> None:
    folder = write(tmp_path, "zebra/2.JPG", "grand_piano/1.png", "grand_piano/more/0.webp")
    result = read_image_folder("train", folder=folder, templates=("a photo of a {}.", "{} on stage"))
    assert [(r.image_id, r.label) for r in result.records] == [
        ("grand_piano/1.png", "grand piano"),
        ("grand_piano/more/0.webp", "grand piano"),
        ("zebra/2.JPG", "zebra"),
    ]
    assert result.records[0].captions == ("a photo of a grand piano.", "grand piano on stage")
    assert result.classes == ("grand piano", "zebra")
    assert read_image_folder("train", folder=folder).records[2].captions == ("a photo of a zebra.",)


def test_other_files_are_skips_and_hidden_ones_are_passed_over(tmp_path: Path) -> None:
    folder = write(tmp_path, "cat/1.jpg", "cat/Thumbs.db", "cat/.DS_Store", ".git/x.jpg", "README.txt")
    result = read_image_folder("train", folder=folder)
    assert [record.image_id for record in result.records] == ["cat/1.jpg"]
    assert [(skip.image_id, skip.reason) for skip in result.skipped] == [("cat/Thumbs.db", "not_an_image")]


def test_templates_come_from_a_file(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("# comment\n\na drawing of a {}.\nthe {}\n")
    result = read_image_folder("train", folder=write(tmp_path / "f", "cat/1.jpg"), templates_file=str(prompts))
    assert result.records[0].captions == ("a drawing of a cat.", "the cat")


def test_the_projects_own_prompts_fit() -> None:
    from shard_builder.readers.image_folder import class_prompts

    assert len(class_prompts("image_folder", (), str(Path(__file__).parents[3] / "configs/prompts/photo.txt"))) == 5


def test_the_real_class_folders_are_read_whole(shared_data: Path) -> None:
    results = {s: read_image_folder(s, folder=str(shared_data / "caltech15" / s)) for s in ("train", "val")}
    assert [len(results[s].records) for s in ("train", "val")] == [675, 225]
    assert results["train"].classes == results["val"].classes == tuple(sorted(results["train"].classes))
    assert len(results["train"].classes) == 15 and "grand piano" in results["train"].classes
    assert {record.label for record in results["val"].records} == set(results["val"].classes)


def test_wrong_folders_and_templates_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "good", "cat/1.jpg")
    with pytest.raises(DataError, match=r"no such folder\. Set source\.folder"):
        read_image_folder("train", folder=str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="holds no class folders"):
        read_image_folder("train", folder=write(tmp_path / "flat", "1.jpg"))
    with pytest.raises(DataError, match="1 class folders hold no images"):
        read_image_folder("train", folder=write(tmp_path / "empty", "cat/notes.txt"))
    with pytest.raises(DataError, match="'a b' and 'a_b' are both class 'a b'"):
        read_image_folder("train", folder=write(tmp_path / "twice", "a_b/1.jpg", "a b/1.jpg"))
    with pytest.raises(DataError, match=r"source\.templates: 'a photo' does not hold one \{\}"):
        read_image_folder("train", folder=folder, templates=("a photo",))
    with pytest.raises(DataError, match="both given"):
        read_image_folder("train", folder=folder, templates=("{}",), templates_file="x.txt")
    with pytest.raises(DataError, match="local disk"):
        read_image_folder("train", folder="s3://bucket/photos")
    with pytest.raises(
        DataError, match=r"n01440764 and 1 other folders are named by WordNet ids.*source\.name=imagenet"
    ):
        read_image_folder("train", folder=write(tmp_path / "ids", "n01440764/1.jpg", "n01443537/1.jpg", "cat/1.jpg"))
