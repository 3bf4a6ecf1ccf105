"""Topics of shard sets, named by their captions, in one set and over several."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from shard_sets import make_shard_set

from core.columns import ColumnHead, ColumnValues, ShardValues, publish_column
from core.manifest import load_manifest
from core.shard_set import ShardSet
from eval.topics import topics_of
from launch.columns import column

pytest.importorskip("sklearn", reason="scikit-learn is not installed: pip install 'shardclip[viz]'")
QUIET = Console(quiet=True)


def test_sets_that_share_centroids_share_names_and_others_are_numbered_on(tmp_path: Path) -> None:
    first, like, other = (make_shard_set(tmp_path / f"{n}", 12, 32, 1, seed=n) for n in range(3))
    column(["topics", first, "num_topics=3"], tmp_path / "cache", QUIET)
    column(["topics", like, f"like={first}"], tmp_path / "cache", QUIET)
    column(["topics", other, "num_topics=2"], tmp_path / "cache", QUIET)
    sets = ShardSet.open([first, like, other])
    found = topics_of(sets)
    assert found is not None and len(found.classes) == 5
    np.testing.assert_array_equal(found.numbers, sets.column("topics").all_rows())
    own = [ShardSet.open(url).column("topics").head.figures["topics"] for url in (first, other)]
    captions = [topic["captions"][0] for topics in own for topic in topics]
    assert found.classes == tuple(f"topic {n}: {caption}" for n, caption in enumerate(captions))


def test_a_set_without_topics_has_none(tmp_path: Path) -> None:
    first, second = make_shard_set(tmp_path / "a", 12), make_shard_set(tmp_path / "b", 12)
    column(["topics", first, "num_topics=3"], tmp_path / "cache", QUIET)
    assert topics_of(ShardSet.open([first, second])) is None
    manifest, labels = load_manifest(second), [ShardValues(np.zeros(count, "<i4")) for count in (10, 2)]
    named_so = ColumnHead("topics", "labels", "sample", "<i4", (), {}, ShardSet.open(second).fingerprint, ("cat",))
    publish_column(second, named_so, [shard.name for shard in manifest.shards], ColumnValues(labels))
    assert topics_of(ShardSet.open(second)) is None
