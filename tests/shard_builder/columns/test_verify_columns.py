"""`verify` names what a column promises and does not keep, also where every hash fits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from column_sets import add
from rich.console import Console

from core.column_kind import by_shard
from core.columns import ColumnValues, ShardValues, head_bytes, load_head, publish_column
from core.shard_set import ShardSet
from core.storage import remove
from shard_builder.verify import verify


def faults(folder: Path) -> dict[str, str]:
    return {fault.file: fault.what for fault in verify(str(folder), Console(quiet=True), workers=1)}


def rewritten(folder: Path, name: str, change: Any, counts: Any = None) -> dict[str, str]:
    """Faults of the column with its values changed and its hashes made to fit."""
    shard_set, head = ShardSet.open(str(folder)), load_head(str(folder), name)
    column = shard_set.column(name)
    extras = {"centroids": np.array(column.extra("centroids"))} if head.kind == "topics" else {}
    if head.per == "sample":
        parts = list(by_shard(shard_set, change(column.all_rows().copy())))
    else:
        samples = np.split(np.arange(len(shard_set)), np.cumsum(shard_set.shard_sizes)[:-1])
        own = [[column.of_captions(int(n)) for n in shard] for shard in samples]
        parts = [ShardValues(np.concatenate(s), np.array([len(v) for v in s], "<i4")) for s in own]
        parts[0] = ShardValues(change(parts[0].values.copy()), counts(parts[0].counts) if counts else parts[0].counts)
    remove(folder / "columns" / name)
    shards = [entry.name for entry in shard_set.manifests[0].shards]
    publish_column(str(folder), replace(head, files=()), shards, ColumnValues(parts, extras))
    return faults(folder)


def put(where: Any, value: Any) -> Any:
    def change(values: np.ndarray) -> np.ndarray:
        values[where] = value
        return values

    return change


@pytest.mark.parametrize(
    ("kind", "options", "change", "what"),
    [
        ("labels", {"name": "c"}, put(1, 5), "holds 5: -1 to 4 is possible"),
        ("topics", {"num_topics": 2}, put(1, -2), "holds -2: -1 to 1 is possible"),
        ("text", {"encoder": "fake"}, put((1, 2), 3), "an embedding is not of unit length"),
        ("text", {"encoder": "fake"}, put((1, 2), np.nan), "a value is not finite"),
        ("tokens", {}, put((1, 0), -1), "a caption has no tokens, or goes on after its end"),
        ("tokens", {}, put((1, 0), 2**30), "holds 1073741824: -1 to 1114111 is possible"),
    ],
)
def test_values_out_of_their_range_are_named(
    built: Path, cache: Path, kind: str, options: dict[str, Any], change: Any, what: str
) -> None:
    (head,) = add(kind, built, cache=cache, **options)
    assert faults(built) == {}
    assert rewritten(built, head.name, change) == {f"columns/{head.name}/train-00000.npy": what}


def test_counts_that_are_not_the_captions_are_named(built: Path, cache: Path) -> None:
    (head,) = add("text", built, cache=cache, encoder="fake")
    found = rewritten(built, head.name, lambda values: values, counts=lambda counts: counts[::-1])
    assert list(found) == [f"columns/{head.name}/train-00000.counts.npy"]


def test_strangers_and_left_overs_are_named(built: Path, cache: Path) -> None:
    columns = built / "columns"
    (columns / "labels" / "notes.txt").write_text("x")
    (columns / ".topics.lock").write_text("x")
    (columns / ".partial-topics.abcdefgh").mkdir()
    (columns / "labels" / "train-00001.npy").unlink()
    assert set(faults(built)) == {
        "columns/labels/notes.txt",
        "columns/.topics.lock",
        "columns/.partial-topics.abcdefgh/column.json",
        "columns/labels/train-00001.npy",
    }


def test_a_column_of_other_samples_or_under_another_name_is_named(built: Path) -> None:
    head = load_head(str(built), "labels")
    path = built / "columns" / "labels" / "column.json"
    path.write_bytes(head_bytes(replace(head, fingerprint="0" * 64)))
    assert "other samples" in faults(built)["columns/labels/column.json"]
    path.write_bytes(head_bytes(head))
    path.parent.rename(built / "columns" / "renamed")
    what = faults(built)["columns/renamed/column.json"]
    assert "columns/renamed/column.json: says that it is column 'labels'. Give the folder its name back" in what
