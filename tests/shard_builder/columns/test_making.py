"""A column is made once, whole, under a lock; a set is what it was, and a killed maker leaves no trace in the end."""

from __future__ import annotations

import io
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from column_sets import add
from photo_folders import folder_bytes, quick_recipe
from rich.console import Console

from core import columns
from core.columns import load_head
from core.errors import ConfigError, ManifestError, StorageError
from core.locks import lock
from core.manifest import load_manifest
from core.shard_set import ShardSet
from shard_builder import caption_embeddings
from shard_builder.build import build_shards
from shard_builder.caption_cache import CaptionCache
from shard_builder.verify import verify
from shard_builder.verify_columns import check_columns

QUIET = Console(quiet=True)


def sound(folder: Path) -> bool:
    return verify(str(folder), QUIET, workers=1) == []


@pytest.mark.parametrize("which", ["built", "adopted"])
def test_a_set_stays_what_it_was(request: pytest.FixtureRequest, cache: Path, which: str) -> None:
    folder: Path = request.getfixturevalue(which)
    before = folder_bytes(folder)
    for kind, options in (
        ("text", {"encoder": "fake"}),
        ("tokens", {"encoder": "fake"}),
        ("topics", {"num_topics": 2}),
    ):
        add(kind, folder, cache=cache, **options)
    after = folder_bytes(folder)
    new = [name for name in after if name not in before]
    assert {name: after[name] for name in before} == before
    assert {name.split("/")[1] for name in new} == {"text.model", "tokens.model", "topics"} and sound(folder)


def test_an_equal_column_is_left_alone_and_another_is_refused(built: Path, cache: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    add("topics", built, cache=cache, num_topics=2)
    before = folder_bytes(built)
    add("topics", built, cache=cache, console=console, num_topics=2)
    assert "already there" in console.file.getvalue()  # type: ignore[attr-defined]
    with pytest.raises(ManifestError, match=r"columns/topics: is another column \(origin.num_topics: 2 -> 3\). Choose"):
        add("topics", built, cache=cache, num_topics=3)
    assert folder_bytes(built) == before


def test_a_column_of_earlier_samples_is_not_taken_for_an_equal_one(built: Path, cache: Path) -> None:
    add("topics", built, cache=cache, num_topics=2)
    head = columns.head_bytes(columns.replace(load_head(str(built), "topics"), fingerprint="0" * 64))
    (built / "columns/topics/column.json").write_bytes(head)
    with pytest.raises(ManifestError, match="is another column .fingerprint: 000"):
        add("topics", built, cache=cache, num_topics=2)


def test_mistakes_are_named_before_anything_starts(built: Path, cache: Path) -> None:
    before = folder_bytes(built)
    with pytest.raises(ConfigError, match="column: unknown name 'lables'. Did you mean 'labels'"):
        add("lables", built, cache=cache)
    with pytest.raises(ConfigError, match="column 'topics': unknown option 'num_topic'. Did you mean 'num_topics'"):
        add("topics", built, cache=cache, num_topic=3)
    with pytest.raises(ConfigError, match="column 'topics': num_topics is 'many': a whole number is needed"):
        add("topics", built, cache=cache, num_topics="many")
    with pytest.raises(ManifestError, match=r"column 'a/b': a name has letters"):
        add("topics", built, cache=cache, num_topics=2, name="a/b")
    with pytest.raises(ManifestError, match="no manifest.json, so no shard set is there"):
        add("topics", built.parent, cache=cache, num_topics=2)
    assert folder_bytes(built) == before


def test_two_makers_of_one_column_do_not_meet(built: Path, cache: Path) -> None:
    with lock(built / "columns" / ".topics.lock", "column topics of a test"):
        with pytest.raises(StorageError, match="in use by column topics of a test"):
            add("topics", built, cache=cache, num_topics=2)
        add("tokens", built, cache=cache)
    add("topics", built, cache=cache, num_topics=2)
    assert sound(built)


def test_several_sets_are_one_command_and_read_as_one(built: Path, adopted: Path, cache: Path) -> None:
    heads = add("text", built, adopted, cache=cache, encoder="fake")
    both = ShardSet.open([str(built), str(adopted)], text=heads[0].name)
    assert len(both) == 32 and both.embeddings(31).shape == (2, 8)


def test_a_remote_set_gets_columns(built: Path, tmp_path: Path, cache: Path) -> None:
    url = f"memory://bucket-{time.time_ns()}/set"
    memory = fsspec.filesystem("memory")
    memory.put(str(built), url.removeprefix("memory:/"), recursive=True)
    add("topics", url, cache=tmp_path, num_topics=3)
    add("topics", built, cache=cache, num_topics=3)
    np.testing.assert_array_equal(
        ShardSet.open(url, tmp_path).column("topics").all_rows(), ShardSet.open(str(built)).column("topics").all_rows()
    )
    there = memory.cat_file(f"{url.removeprefix('memory:/')}/columns/topics/column.json")
    assert there == (built / "columns/topics/column.json").read_bytes()
    faults: list[tuple[str, str]] = []  # verify's workers are other processes, which have no part in this memory
    heads = check_columns(url, load_manifest(url), tmp_path, lambda file, what: faults.append((file, what)))
    assert [head.name for head in heads] == ["labels", "topics"] and faults == []


@pytest.mark.parametrize("kind", ["labels", "tokens", "topics", "text"])
@pytest.mark.parametrize("files", [1, 3, "head"])
def test_a_killed_maker_leaves_nothing_in_the_end(
    built: Path, cache: Path, tmp_path: Path, kind: str, files: int | str
) -> None:
    options: dict[str, Any] = {"topics": {"num_topics": 3}, "text": {"encoder": "fake"}}.get(kind, {})
    name = {"tokens": "tokens.model", "text": "text.model"}.get(kind, kind)
    if kind == "labels":
        name, options = "again", {"name": "again"}
    before = folder_bytes(built)
    killed_at(lambda stop: stop_before(stop, files), lambda: add(kind, built, cache=tmp_path, **options))
    left = {file: data for file, data in folder_bytes(built).items() if file not in before}
    assert left and all("/.partial-" in file or file.endswith(".lock") for file in left)
    assert name not in columns.column_names(str(built)) and not sound(built)
    add(kind, built, cache=tmp_path, **options)
    once = folder_bytes(built / "columns" / name)
    assert sound(built) and {f.split("/")[1] for f in folder_bytes(built) if f not in before} == {name}
    (built / "columns" / name).rename(tmp_path / "first")
    add(kind, built, cache=cache, **options)
    assert folder_bytes(built / "columns" / name) == once


def test_a_killed_embedding_goes_on(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption_embeddings, "SEGMENT_CAPTIONS", 1)
    monkeypatch.setattr("core.text_encoders.encode.CPU_TOKENS", 32)

    def stop_at_second_segment(stop: Callable[[], None]) -> None:
        real, calls = CaptionCache.add, []

        def add_segment(self: CaptionCache, *arguments: Any) -> None:
            calls.append(1)
            stop() if len(calls) == 3 else real(self, *arguments)

        CaptionCache.add = add_segment  # type: ignore[method-assign]

    killed_at(stop_at_second_segment, lambda: add("text", built, cache=tmp_path, encoder="fake"))
    kept = len(list((tmp_path / "captions").rglob("*.captions")))
    embedded: list[int] = []
    real = CaptionCache.add
    monkeypatch.setattr(
        CaptionCache, "add", lambda self, captions, e: (embedded.append(len(captions)), real(self, captions, e))[1]
    )
    (head,) = add("text", built, cache=tmp_path, encoder="fake")
    assert kept == 2 and 0 < sum(embedded) < head.figures["distinct"]


def test_labels_of_a_killed_build_are_replaced(built: Path, cache: Path, tmp_path: Path) -> None:
    labels = built / "columns" / "labels"
    whole = folder_bytes(built)
    (built / "manifest.json").unlink()  # killed just before its manifest
    (built / ".build").mkdir()
    recipe = json.loads((built / "build.json").read_text())["recipe"]
    (built / ".build" / "recipe.json").write_text(json.dumps(recipe))
    for file in built.glob("train-*"):
        file.unlink()
    (labels / "column.json").write_text("{}")
    (labels / "stranger.npy").write_bytes(b"x")
    photos = built.parent / "photos"
    if not photos.exists():
        from photo_folders import write_photos

        write_photos(photos, 20)
    build_shards(quick_recipe(photos / "captions.jsonl", built, cache, samples_per_shard=8), QUIET)
    assert folder_bytes(built) == whole


def stop_before(stop: Callable[[], None], files: int | str) -> None:
    """Stop when that many files are encoded, or before the head."""
    calls: list[int] = []
    encode, head = columns.encode_array, columns.head_bytes

    def counted(array: np.ndarray) -> bytes:
        calls.append(1)
        if len(calls) == files:
            stop()
        return encode(array)

    def stopped(of: Any) -> bytes:
        stop()
        return head(of)

    columns.encode_array = counted
    if files == "head":
        columns.head_bytes = stopped


def killed_at(plant: Callable[[Callable[[], None]], None], act: Callable[[], object]) -> None:
    """Run `act` in a process that is killed where `plant` lets it stop."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            os.close(reading)

            def stop() -> None:
                os.write(writing, b"here")
                signal.pause()

            plant(stop)
            act()
        finally:
            os._exit(1)
    os.close(writing)
    assert os.read(reading, 4) == b"here", "it ended before the place"
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    os.close(reading)
