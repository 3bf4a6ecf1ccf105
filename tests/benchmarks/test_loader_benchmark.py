"""What the loader benchmark rests on: a set that is enlarged is whole, streams are counted, absent peers are named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from shard_sets import make_shard_set

from benchmarks import loader
from benchmarks.loader import Contender
from benchmarks.loader_peers import timing
from benchmarks.loader_peers.inputs import samples, stored_once
from benchmarks.loader_startup import enlarge
from benchmarks.measure import compare
from core.shard_index import IMAGE
from core.shard_set import ShardSet


def test_an_enlarged_set_opens_and_repeats_the_samples(tmp_path: Path) -> None:
    source = ShardSet.open(make_shard_set(tmp_path / "jpeg", 20))
    (tmp_path / "many").mkdir()
    enlarge(tmp_path / "jpeg", tmp_path / "many", 45)
    enlarged = ShardSet.open(str(tmp_path / "many"))
    assert len(enlarged) == 50
    assert [bytes(enlarged.member(n, IMAGE)) for n in range(50)] == [
        bytes(source.member(n % 20, IMAGE)) for n in range(50)
    ]
    assert len(set(enlarged.image_ids(np.arange(50)).tolist())) == 50


def test_a_stream_is_counted_only_once_it_is_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def batches() -> Iterator[np.ndarray]:
        nonlocal now
        for number in range(1000):
            now += 10.0 if number < 3 else 0.5  # a slow start
            yield np.zeros((4, 2), np.uint8)

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now)
    assert timing.timed(batches(), 5.0) == {"samples_per_s": 8.0, "batch": "4 x 2 uint8"}


def test_a_peer_stores_its_form_once_and_again_when_the_input_changes(tmp_path: Path) -> None:
    make_shard_set(tmp_path / "jpeg", 10)
    stored: list[int] = []

    def store(target: Path) -> None:
        stored.append(len(list(samples(tmp_path))))

    assert stored_once(tmp_path, "peer", store) == stored_once(tmp_path, "peer", store) == tmp_path / "peer"
    make_shard_set(tmp_path / "jpeg", 20)
    stored_once(tmp_path, "peer", store)
    assert stored == [10, 20]


def test_a_peer_that_is_not_installed_is_named_in_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "is_installed", lambda package: False)
    monkeypatch.setattr(loader, "in_own_process", lambda *_, **__: {"samples_per_s": 5.0, "batch": "1 x 1"})
    ours, absent = Contender("ours", "ours"), Contender("peer", "peer_recipe", package="peer-package")
    table = loader._in_turn([ours, absent], Path("input"), 1.0, 2, "photographs")("title", [ours, absent], "ours")
    assert [(row.runs, row.median, row.ratio) for row in table.rows] == [((5.0, 5.0), 5.0, 1.0), ((), None, None)]
    assert table.rows[1].note == "skipped: peer-package is not installed (make peers)"
    json.dumps([row.median for row in table.rows], allow_nan=False)


def test_a_ratio_says_how_many_times_better_ours_is() -> None:
    figures = {"ours": [2.0, 8.0, 4.0], "peer": [1.0, 2.0, 9.0]}
    more = compare("speed", figures, ours="ours", unit="x/s", input="")
    less = compare("time", figures, ours="ours", unit="s", input="", less_is_better=True)
    assert [row.ratio for row in more.rows] == [1.0, 2.0] and [row.ratio for row in less.rows] == [1.0, 0.5]
