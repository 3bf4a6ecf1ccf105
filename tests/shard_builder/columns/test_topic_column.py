"""Topics: each sample belongs to the nearest centroid, and bytes do not depend on threads."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from column_sets import add, build_set
from photo_folders import folder_bytes
from threadpoolctl import threadpool_limits

from core.errors import ConfigError, ManifestError
from core.shard_set import ShardSet
from shard_builder.columns import topics


def nearest_by_loop(shard_set: ShardSet, centroids: np.ndarray) -> list[int]:
    found = []
    for sample in range(len(shard_set)):
        mean = shard_set.embeddings(sample).astype(np.float64).mean(axis=0)
        found.append(int(((mean / np.linalg.norm(mean) - centroids) ** 2).sum(axis=1).argmin()))
    return found


def test_a_topic_is_the_nearest_centroid(built: Path, cache: Path) -> None:
    (head,) = add("topics", built, cache=cache, num_topics=4)
    shard_set = ShardSet.open(str(built))
    column = shard_set.column("topics")
    centroids = column.extra("centroids").astype(np.float64)
    assert column.all_rows().tolist() == nearest_by_loop(shard_set, centroids)
    sizes = np.bincount(column.all_rows(), minlength=4)
    assert [topic["size"] for topic in head.figures["topics"]] == sizes.tolist() and sizes.min() > 0
    for number, topic in enumerate(head.figures["topics"]):
        own = [shard_set.captions(int(s)) for s in np.flatnonzero(column.all_rows() == number)]
        assert 1 <= len(topic["captions"]) <= 3
        assert all(any(caption in captions for captions in own) for caption in topic["captions"])


def test_threads_leave_no_trace(built: Path, cache: Path) -> None:
    def bytes_with(threads: int, name: str) -> list[bytes]:
        with threadpool_limits(threads):
            add("topics", built, cache=cache, num_topics=5, name=name)
        files = folder_bytes(built / "columns" / name)
        return [data for file, data in files.items() if file != "column.json"]

    assert bytes_with(1, "one") == bytes_with(2, "two") == bytes_with(4, "four")


def test_a_row_does_not_depend_on_its_company() -> None:
    draw = np.random.default_rng(0)
    vectors, centroids = draw.normal(size=(5000, 16)).astype(np.float32), draw.normal(size=(9, 16)).astype(np.float32)
    numbers, distances = topics.nearest(vectors, centroids)
    slow = ((vectors[:, None].astype(float) - centroids) ** 2).sum(axis=2)
    np.testing.assert_array_equal(numbers, slow.argmin(axis=1))
    np.testing.assert_allclose(distances, slow.min(axis=1), rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(topics.nearest(vectors[4990:], centroids)[1], distances[4990:])


def test_another_set_shares_topics(built: Path, tmp_path: Path, cache: Path) -> None:
    val = build_set(tmp_path / "val", cache, count=9)
    (of_train,) = add("topics", built, cache=cache, num_topics=3, seed=5)
    (of_val,) = add("topics", val, cache=cache, like=str(built))
    assert of_val.origin["like"]["fingerprint"] == of_train.fingerprint and of_val.origin["seed"] == 5
    both = ShardSet.open([str(built), str(val)])
    centroids = both.column("topics").extra("centroids").astype(np.float64)
    assert both.column("topics").all_rows().tolist() == nearest_by_loop(both, centroids)


def test_topics_go_by_a_named_text_column(built: Path, adopted: Path, cache: Path) -> None:
    with pytest.raises(ManifestError, match="has no caption embeddings. Add them"):
        add("topics", adopted, cache=cache, num_topics=2)
    add("text", adopted, cache=cache, encoder="fake")
    (head,) = add("topics", adopted, cache=cache, num_topics=2)
    assert head.origin["text"]["column"] == "text.model"
    add("text", built, cache=cache, encoder="minilm")
    add("topics", built, cache=cache, num_topics=2, text="text.minilm")
    with pytest.raises(ManifestError, match="its topics are of embeddings by minilm, those of .* are by fake:model"):
        add("topics", adopted, cache=cache, like=str(built), name="topics")


def test_numbers_that_do_not_fit_are_named(built: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="num_topics is 100; .* has 20 samples: 2 to that many"):
        add("topics", built, cache=cache)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ConfigError, match=r"needs scikit-learn: `pip install 'shardclip\[viz\]'`"):
        add("topics", built, cache=cache, num_topics=2)


def test_another_sets_topics_bring_their_own_number(built: Path, adopted: Path, cache: Path) -> None:
    add("topics", built, cache=cache, num_topics=3)
    with pytest.raises(ConfigError, match="brings its own number of topics. Leave num_topics out"):
        add("topics", built, cache=cache, num_topics=4, like=str(built), name="topics.other")
