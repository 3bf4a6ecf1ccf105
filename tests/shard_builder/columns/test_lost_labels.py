"""A set whose labels were lost gets them back, by its build or by `column labels`; `verify` names both."""

from __future__ import annotations

import io
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from column_sets import add
from photo_folders import folder_bytes, quick_recipe
from rich.console import Console

from core.manifest import load_manifest, save_manifest
from shard_builder.build import build_shards
from shard_builder.verify import verify

NAMED = (
    "`shardclip build` with the recipe of this set (out={0}), or `shardclip column labels {0}`, makes the labels again."
)


def harm(built: Path, what: str) -> None:
    labels = built / "columns/labels"
    if what == "folder":
        shutil.rmtree(built / "columns")
    elif what == "gone":
        (labels / "train-00001.npy").unlink()
    elif what == "head":
        (labels / "column.json").unlink()
    else:
        (labels / "train-00001.npy").write_bytes(bytes(10))


@pytest.mark.parametrize("what", ["folder", "gone", "head", "other bytes"])
@pytest.mark.parametrize("by", ["build", "column"])
def test_lost_labels_are_named_and_made_again(sets: Path, built: Path, cache: Path, what: str, by: str) -> None:
    whole = folder_bytes(built)
    harm(built, what)
    console = Console(file=io.StringIO(), width=1000)
    assert verify(str(built), console, workers=1)
    assert NAMED.format(built) in console.file.getvalue()  # type: ignore[attr-defined]
    if by == "build":
        build_shards(quick_recipe(sets / "photos/captions.jsonl", built, cache, samples_per_shard=8), console)
        assert "repaired" in console.file.getvalue()  # type: ignore[attr-defined]
        assert "already built" not in console.file.getvalue()  # type: ignore[attr-defined]
    else:
        add("labels", built, cache=cache, console=console)
        assert "already there" not in console.file.getvalue()  # type: ignore[attr-defined]
    assert folder_bytes(built) == whole
    assert verify(str(built), console, workers=1) == []


def test_an_older_set_without_labels_is_sound_and_told_of(built: Path) -> None:
    shutil.rmtree(built / "columns")
    save_manifest(replace(load_manifest(str(built)), captions=""), str(built))
    console = Console(file=io.StringIO(), width=1000)
    assert verify(str(built), console, workers=1) == []
    assert f"`shardclip column labels {built}` makes them." in console.file.getvalue()  # type: ignore[attr-defined]


def test_labels_of_a_file_are_left_to_their_owner(sets: Path, built: Path, cache: Path, tmp_path: Path) -> None:
    shutil.rmtree(built / "columns")
    (tmp_path / "labels.csv").write_text("key,label\n000000000,odd\n")
    add("labels", built, cache=cache, file=str(tmp_path / "labels.csv"))
    harm(built, "gone")
    before = folder_bytes(built)
    console = Console(file=io.StringIO(), width=1000)
    build_shards(quick_recipe(sets / "photos/captions.jsonl", built, cache, samples_per_shard=8), console)
    assert folder_bytes(built) == before
    assert verify(str(built), console, workers=1)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert (
        f"`shardclip column labels {built}`, with the options that it was made with, makes column labels again" in said
    )
