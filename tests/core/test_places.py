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

HERE, HOME = Path("/srv/project"), Path("/home/ada")


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("/", "the root of the file system"),
        ("//", "the root of the file system"),
        ("/srv/..", "the root of the file system"),
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


def test_a_path_that_leads_nowhere_is_said_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one").symlink_to(tmp_path / "two")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    for path in (tmp_path / "one", tmp_path / "a\0b"):
        with pytest.raises(ConfigError, match="out is .* which leads nowhere"):
            expect_folder_of_ours(path, "out", RUN)

    def closed(path: Path) -> Path:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "resolve", closed)
    with pytest.raises(ConfigError, match="Permission denied"):
        expect_no_common_folder(tmp_path, "out")


@pytest.mark.parametrize("url", ["file:///", "FILE:///", "local:///", "Local:////", "local:///srv/.."])
def test_the_root_has_no_other_names(url: str) -> None:
    with pytest.raises(ConfigError, match="the root of the file system"):
        expect_no_common_folder(url, "out")


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


OWN_RESULTS, OTHER_RESULTS = '{"format_version": 1, "checkpoint": "c"}', '{"accuracy": 0.5}'


def filled(folder: Path, names: list[str]) -> Path:
    """A folder with these things: `a/` is a folder, `a=text` a file with a text."""
    for name in names:
        path, _, text = name.partition("=")
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).mkdir(exist_ok=True) if path.endswith("/") else (folder / path).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("names", "contents", "strangers"),
    [
        ([], SHARD_SET, []),
        (["a.jpg", "b.jpg"], SHARD_SET, ["a.jpg", "b.jpg"]),
        (["cat", "dog"], RUN, ["cat", "dog"]),
        (["manifest.json", "notes.txt"], SHARD_SET, []),
        ([".build/recipe.json", "notes.txt"], SHARD_SET, []),
        ([".build/"], SHARD_SET, []),  # killed before a line of the recipe was written
        ([".build/.partial-recipe.json.x"], SHARD_SET, []),
        ([".build/.partial-recipe.json.x", "photo.png"], SHARD_SET, ["photo.png"]),
        ([".build/debug/main.o"], SHARD_SET, [".build"]),  # of a Swift package
        ([".build/debug/main.o", "Package.swift"], SHARD_SET, [".build", "Package.swift"]),
        (["train-00000.tar", "train-00000.idx"], SHARD_SET, []),  # the builder has a sentence of its own
        (["train-00000.tar", "photo.png"], SHARD_SET, ["photo.png"]),
        ([".lock", ".partial-run.json.x", "slurm-7.out", "recipe.yaml"], RUN, []),
        (["lost+found/", ".DS_Store", ".gitkeep", ".nfs0001"], RUN, []),
        (["run.json", "photo.png"], RUN, []),
        (["checkpoints/"], RUN, []),
        (["checkpoints/", "photo.png"], RUN, ["photo.png"]),
        (["config.yaml", "metrics.csv"], RUN, ["metrics.csv"]),
        ([".git/"], RUN, [".git"]),
        (["pictures/"], EVALUATION, ["pictures"]),
        (["evaluation.yaml", "pictures/"], EVALUATION, []),
        (["run.json", "pictures/"], EVALUATION, []),
        ([f"results.json={OWN_RESULTS}", "ranks.safetensors"], EVALUATION, []),
        ([f"results.json={OTHER_RESULTS}"], EVALUATION, ["results.json"]),
        (["results.json=["], EVALUATION, ["results.json"]),
        (["results.json=[1]"], EVALUATION, ["results.json"]),
        (["config.yaml", "checkpoints/", "metrics.csv"], EVALUATION, []),  # a run's, copied without its run.json
        (["config.yaml", "checkpoints/", "results.json=1"], EVALUATION, ["results.json"]),
        (["scenes/", "cache/"], DEMO, []),
    ],
)
def test_what_makes_a_folder_ours(tmp_path: Path, names: list[str], contents: Contents, strangers: list[str]) -> None:
    assert list(strange_names(filled(tmp_path, names), contents)) == strangers


def test_a_file_is_no_folder_and_a_url_is_not_looked_at(tmp_path: Path) -> None:
    file = tmp_path / "photo.jpg"
    file.touch()
    with pytest.raises(ConfigError, match="which is a file"):
        expect_folder_of_ours(file, "out", SHARD_SET)
    expect_folder_of_ours("s3://bucket/set", "out", SHARD_SET)
    expect_folder_of_ours(tmp_path / "new", "out", SHARD_SET)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"], "asking writes nothing"
