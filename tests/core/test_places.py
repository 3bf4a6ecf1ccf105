"""Nothing is written into `/`, the home folder, or a folder that holds other people's things; asked, never tried."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.errors import ConfigError, StorageError
from core.places import (
    DEMO,
    EVALUATION,
    RUN,
    SHARD_SET,
    Contents,
    expect_folder_of_ours,
    expect_no_common_folder,
    strange_names,
    why_common,
)
from core.storage import join

HERE, HOME = Path("/work/project"), Path("/home/ada")


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("/", "the root of the file system"),
        ("//", "the root of the file system"),
        ("/work/..", "the root of the file system"),
        ("../..", "the root of the file system"),
        ("/home/ada", "the home folder."),
        ("/home/ada/photos/..", "the home folder."),
        ("../../home/ada/.", "the home folder."),
        ("/home", "which holds the home folder /home/ada"),
        ("~", "where ~ is a letter"),
        ("~/shards", "Write $HOME/shards."),
    ],
)
def test_folders_that_are_everybodys(path: str, sentence: str) -> None:
    assert sentence in str(why_common(Path(path), HERE, HOME))


@pytest.mark.parametrize("path", ["data/coco", "/home/ada/coco", "/data", "/home/bob", "../coco", ".", "a~"])
def test_folders_that_may_be_ours(path: str) -> None:
    assert why_common(Path(path), HERE, HOME) is None


@pytest.mark.parametrize("blank", ["", " ", "\t", " \n "])
def test_a_blank_path_is_no_folder(blank: str) -> None:
    for expect in (expect_no_common_folder, lambda path, key: expect_folder_of_ours(path, key, RUN)):
        with pytest.raises(ConfigError, match="out is blank"):
            expect(blank, "out")
    with pytest.raises(StorageError, match="a path is blank"):
        join(blank, "manifest.json")


def test_a_link_to_the_home_folder_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    (tmp_path / "link").symlink_to(home)
    with pytest.raises(ConfigError, match="the home folder"):
        expect_folder_of_ours(tmp_path / "link", "run_dir", RUN)


@pytest.mark.parametrize(
    ("names", "contents", "strangers"),
    [
        ([], SHARD_SET, []),
        (["a.jpg", "b.jpg"], SHARD_SET, ["a.jpg", "b.jpg"]),
        (["cat", "dog"], RUN, ["cat", "dog"]),
        (["manifest.json", "notes.txt"], SHARD_SET, []),
        ([".build"], SHARD_SET, []),
        (["train-00000.tar", "train-00000.idx"], SHARD_SET, []),  # the builder has a sentence of its own
        (["train-00000.tar", "photo.png"], SHARD_SET, ["photo.png"]),
        ([".lock", ".partial-run.json.x", "slurm-7.out", "recipe.yaml"], RUN, []),
        (["run.json", "photo.png"], RUN, []),
        ([".git"], RUN, [".git"]),
        (["pictures"], EVALUATION, ["pictures"]),
        (["evaluation.yaml", "pictures"], EVALUATION, []),
        (["run.json"], EVALUATION, []),
        (["scenes", "cache"], DEMO, []),
    ],
)
def test_what_makes_a_folder_ours(names: list[str], contents: Contents, strangers: list[str]) -> None:
    assert list(strange_names(names, contents)) == strangers


def test_a_file_is_no_folder_and_a_url_is_not_looked_at(tmp_path: Path) -> None:
    file = tmp_path / "photo.jpg"
    file.touch()
    with pytest.raises(ConfigError, match="which is a file"):
        expect_folder_of_ours(file, "out", SHARD_SET)
    expect_folder_of_ours("s3://bucket/set", "out", SHARD_SET)
    expect_folder_of_ours(tmp_path / "new", "out", SHARD_SET)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"], "asking writes nothing"
