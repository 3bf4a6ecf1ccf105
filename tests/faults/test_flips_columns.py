"""The same damages as in test_flips.py, to columns: whoever reads a value finds them and names the file.

column.json         `ShardSet.column`, before the first value
values and counts   whoever reads the shard's values: training, evaluation, `shardclip column topics`
centroids           whoever asks for them: `like=`
`verify` finds every one of them.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from column_sets import add, build_set
from damages import MISSING, Damage, Finder, damaged, error_of, files_of, unfound
from rich.console import Console

from core import column_values, columns
from core.columns import column_names
from core.manifest import load_manifest
from core.shard_set import ShardSet
from shard_builder import verify_columns

FULL = pytest.mark.faults


@pytest.fixture
def with_columns(tmp_path: Path, caption_cache: Path) -> Path:
    """Three shards with labels, token ids, embeddings and topics; each column in every shape there is."""
    folder = build_set(tmp_path, caption_cache)
    add("tokens", folder, cache=caption_cache)
    add("text", folder, cache=caption_cache, encoder="fake")
    add("topics", folder, cache=caption_cache, num_topics=3)
    return folder


@pytest.mark.parametrize("count", [100, pytest.param(500, marks=FULL)])
def test_damage_to_a_column_is_found(with_columns: Path, count: int, fault_seed: int) -> None:
    missed = unfound(files_of(with_columns / "columns"), count, fault_seed, in_columns(with_columns))
    assert not missed, "\n".join(missed)


@pytest.mark.parametrize(
    ("owner", "name"),
    [(columns, "_signed"), (column_values.xxhash, "xxh3_64_hexdigest"), (verify_columns, "sha256_of")],
)
def test_without_one_of_the_checks_this_suite_turns_red(
    with_columns: Path, owner: Any, name: str, fault_seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = in_columns(with_columns)
    monkeypatch.setattr(owner, name, lambda data: AgreesWithAll())
    missed = unfound(files_of(with_columns / "columns"), 150, fault_seed, find)
    assert any("stumbled" not in sentence for sentence in missed), missed


class AgreesWithAll(str):
    """A planted defect: a hash that fits everything."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = str.__hash__


def in_columns(folder: Path) -> Finder:
    """Read every column as its users do, then verify them."""
    sound = {name: values_of(folder, name) for name in column_names(str(folder))}
    assert verify_names(folder) == set() and len(sound) == 4

    def find(damage: Damage) -> str | None:
        with damaged(damage):
            touched = {path.parent.name for path in (damage.file, damage.other) if path}
            messages = []
            for name, values in sound.items():
                found: list[list[bytes]] = []
                message = error_of(lambda name=name, found=found: found.append(values_of(folder, name)))  # type: ignore[misc]
                if message is None and found[0] != values:
                    return f"{name} was read and is not what was written"
                if message is None and name in touched:
                    return f"{name} was read and nothing was found"
                if message and name not in touched:
                    return f"{name} is refused and was not touched: {message}"
                messages += [message] if message else []
            is_gone = damage.kind == MISSING and damage.file.name == "column.json"  # no column, as readers see it
            wanted = {damage.file.parent.name} if is_gone else {f"{damage.file.parent.name}/{damage.file.name}"}
            wanted |= {f"{damage.other.parent.name}/{damage.other.name}"} if damage.other else set()
            if not any(name in message for message in messages for name in wanted):
                return f"no reader names the file: {messages}"
            if not wanted & {name.removeprefix("columns/") for name in verify_names(folder)} and not is_gone:
                return f"verify names {verify_names(folder)}"
            if is_gone and f"columns/{damage.file.parent.name}/column.json" not in verify_names(folder):
                return f"verify names {verify_names(folder)}"
        return None

    return find


def values_of(folder: Path, name: str) -> list[bytes]:
    """Every value of a column."""
    shard_set = ShardSet.open(str(folder), text="")
    column = shard_set.column(name)
    if column.head.per == "caption":
        return [np.ascontiguousarray(column.of_captions(n)).tobytes() for n in range(len(shard_set))]
    extra = [column.extra("centroids").tobytes()] if column.head.kind == "topics" else []
    return [column.all_rows().tobytes(), *extra]


def verify_names(folder: Path) -> set[str]:
    found: set[str] = set()
    url = str(folder)
    verify_columns.check_columns(url, load_manifest(url), None, lambda file, what: found.add(file))
    return found


def test_verify_itself_counts_faults_of_columns(with_columns: Path) -> None:
    from shard_builder.verify import verify

    (with_columns / "columns" / "topics" / "train-00001.npy").write_bytes(b"")
    faults = verify(str(with_columns), Console(file=io.StringIO()), workers=1)
    assert [fault.file for fault in faults] == ["columns/topics/train-00001.npy"]
