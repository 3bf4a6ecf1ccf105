"""Columns are whole, bound to their set, and read back by sample number over any sets and shards."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_sets import make_shard_set
from signed_files import sign_manifest

from core.columns import (
    ColumnHead,
    ColumnValues,
    ShardValues,
    column_names,
    column_url,
    head_bytes,
    load_head,
    publish_column,
    sweep_column,
    text_column_of,
    unfinished_columns,
)
from core.errors import DamagedError, ManifestError, StorageError
from core.manifest import TextEncoderSpec
from core.shard_set import ShardSet

ENCODER = {"name": "other", "revision": "1", "embed_dim": 3, "weights_sha256": "2" * 64}


def put(
    url: str, name: str, kind: str, values: np.ndarray, counts: np.ndarray | None = None, **more: Any
) -> ColumnHead:
    """Publish a column; `values` of all samples, or of all captions with `counts` of each sample."""
    shard_set = ShardSet.open(url)
    extras = more.pop("extras", {})
    head = ColumnHead(
        name=name,
        kind=kind,
        per="sample" if counts is None else "caption",
        dtype=values.dtype.str,
        shape=values.shape[1:],
        origin=more.pop("origin", {}),
        fingerprint=shard_set.fingerprints[0],
        **more,
    )
    ends = np.cumsum(shard_set.shard_sizes)
    rows = [slice(a, b) for a, b in zip(ends - shard_set.shard_sizes, ends)]
    starts = np.arange(len(shard_set) + 1) if counts is None else np.concatenate([[0], np.cumsum(counts)])
    parts = [ShardValues(values[starts[r.start] : starts[r.stop]], None if counts is None else counts[r]) for r in rows]
    shards = [entry.name for entry in shard_set.manifests[0].shards]
    return publish_column(url, head, shards, ColumnValues(parts, extras))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_values_come_back_by_sample_number(
    tmp_path_factory: pytest.TempPathFactory, a: int, b: int, per_shard: int, seed: int
) -> None:
    folder, draw = tmp_path_factory.mktemp("sets"), np.random.default_rng(seed)
    urls = [make_shard_set(folder / n, count, samples_per_shard=per_shard) for n, count in (("a", a), ("b", b))]
    rows = draw.normal(size=(a + b, 4)).astype("<f4")
    counts = draw.integers(1, 4, a + b)
    of_captions = draw.normal(size=(counts.sum(), 3)).astype("<f2")
    cut = counts[:a].sum()
    put(urls[0], "rows", "features", rows[:a])
    put(urls[1], "rows", "features", rows[a:])
    put(urls[0], "texts", "text", of_captions[:cut], counts[:a], origin={"text_encoder": ENCODER})
    put(urls[1], "texts", "text", of_captions[cut:], counts[a:], origin={"text_encoder": ENCODER})
    both = ShardSet.open(urls)
    asked = draw.integers(0, a + b, 40)
    np.testing.assert_array_equal(both.column("rows").rows(asked), rows[asked])
    np.testing.assert_array_equal(both.column("rows").all_rows(), rows)
    starts = np.cumsum(counts) - counts
    for sample in asked.tolist():
        own = of_captions[starts[sample] : starts[sample] + counts[sample]]
        np.testing.assert_array_equal(both.column("texts").of_captions(sample), own)


def test_labels_of_several_sets_are_united_by_name(tmp_path: Path) -> None:
    urls = [make_shard_set(tmp_path / name, 4) for name in "ab"]
    put(urls[0], "labels", "labels", np.array([0, 1, -1, 1], "<i4"), classes=("cat", "dog"))
    put(urls[1], "labels", "labels", np.array([0, 1, -1, 2], "<i4"), classes=("ape", "dog", "cat"))
    column = ShardSet.open(urls).column("labels")
    names = [column.classes[n] if n >= 0 else None for n in column.all_rows().tolist()]
    assert names == ["cat", "dog", None, "dog", "ape", "dog", None, "cat"]


def test_topics_are_shared_by_centroids_and_numbered_on_without(tmp_path: Path) -> None:
    urls = [make_shard_set(tmp_path / name, 3, seed=n) for n, name in enumerate("abc")]
    centroids = np.eye(2, dtype="<f4")
    for url, own in zip(urls, (centroids, centroids[::-1].copy(), centroids)):
        origin = {"num_topics": 2}
        put(url, "topics", "topics", np.array([0, 1, -1], "<i4"), origin=origin, extras={"centroids": own})
    assert ShardSet.open(urls).column("topics").all_rows().tolist() == [0, 1, -1, 2, 3, -1, 0, 1, -1]


def test_a_column_of_other_samples_is_refused(tmp_path: Path) -> None:
    urls = [make_shard_set(tmp_path / "a", 4), make_shard_set(tmp_path / "b", 4, seed=1)]
    put(urls[0], "labels", "labels", np.zeros(4, "<i4"), classes=("x",))
    os.renames(Path(urls[0]) / "columns", Path(urls[1]) / "columns")
    with pytest.raises(ManifestError, match="was made for other samples than the set has now. Delete columns/labels"):
        ShardSet.open(urls[1]).column("labels")
    with pytest.raises(ManifestError, match="has no column 'labels'. It has none: make one"):
        ShardSet.open(urls[0]).column("labels")


def test_columns_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    urls = [make_shard_set(tmp_path / name, 4) for name in "ab"]
    put(urls[0], "features", "features", np.zeros((4, 2), "<f4"), origin={"tower": {"name": "resnet50"}})
    put(urls[1], "features", "features", np.zeros((4, 2), "<f4"), origin={"tower": {"name": "resnet18"}})
    with pytest.raises(ManifestError, match="was made by .*resnet18.*, that of .* by .*resnet50.*Make both alike"):
        ShardSet.open(urls).column("features")


def test_a_column_in_a_folder_of_another_name_is_refused(tmp_path: Path) -> None:
    url = make_shard_set(tmp_path / "set", 4)
    put(url, "labels", "labels", np.zeros(4, "<i4"))
    os.rename(tmp_path / "set/columns/labels", tmp_path / "set/columns/others")
    with pytest.raises(ManifestError, match=r"others/column\.json: says that it is column 'labels'. Give the folder"):
        load_head(url, "others")


@pytest.mark.parametrize(
    ("what", "kind", "values", "counts"),
    [
        ("kind others, that of .* numbers", "others", np.zeros(4, "<i4"), None),
        ("per caption, that of .* sample", "numbers", np.zeros(4, "<i4"), np.ones(4, int)),
        ("dtype <i8, that of .* <i4", "numbers", np.zeros(4, "<i8"), None),
        (r"shape \(2,\), that of .* \(\)", "numbers", np.zeros((4, 2), "<i4"), None),
    ],
)
def test_columns_of_another_kind_or_shape_are_refused(
    tmp_path: Path, what: str, kind: str, values: np.ndarray, counts: np.ndarray | None
) -> None:
    urls = [make_shard_set(tmp_path / name, 4, num_captions=1) for name in "ab"]
    put(urls[0], "numbers", "numbers", np.zeros(4, "<i4"))
    put(urls[1], "numbers", kind, values, counts)
    with pytest.raises(ManifestError, match=f"b: column 'numbers' has {what}. Make both alike"):
        ShardSet.open(urls).column("numbers")


def test_a_failed_column_leaves_nothing(tmp_path: Path) -> None:
    url = make_shard_set(tmp_path / "set", 4)

    def breaks() -> Any:
        yield ShardValues(np.zeros(4, "<i4"))
        raise DamagedError("planted")

    head = ColumnHead("labels", "labels", "sample", "<i4", (), {}, ShardSet.open(url).fingerprint)
    with pytest.raises(DamagedError, match="planted"):
        publish_column(url, head, ["train-00000.tar", "train-00001.tar"], ColumnValues(breaks()))
    assert not list((tmp_path / "set" / "columns").iterdir())
    put(url, "labels", "labels", np.zeros(4, "<i4"))
    with pytest.raises(StorageError, match="is there already"):
        put(url, "labels", "labels", np.zeros(4, "<i4"))


def test_half_a_column_is_none(tmp_path: Path) -> None:
    url = make_shard_set(tmp_path / "set", 4)
    put(url, "labels", "labels", np.zeros(4, "<i4"))
    columns = tmp_path / "set" / "columns"
    for litter in (".partial-labels.abcdefgh", ".partial-labels.fine.abcdefgh"):
        (columns / litter).mkdir()
        (columns / litter / "column.json").write_bytes((columns / "labels" / "column.json").read_bytes())
    (columns / "torn").mkdir()
    assert (column_names(url), unfinished_columns(url)) == (["labels"], ["torn"])
    sweep_column(url, "labels")  # another column's maker may be at work
    assert sorted(p.name for p in columns.iterdir()) == [".partial-labels.fine.abcdefgh", "labels", "torn"]


def test_a_remote_column_ends_with_its_head_and_is_read_through_the_cache(tmp_path: Path) -> None:
    import fsspec

    here = make_shard_set(tmp_path / "set", 12, num_captions=2)
    url = f"memory://bucket-{time.time_ns()}/set"
    memory = fsspec.filesystem("memory")
    memory.put(here, url.removeprefix("memory:/"), recursive=True)
    values, counts = np.arange(24, dtype="<f4").reshape(24, 1), np.full(12, 2)
    shard_set = ShardSet.open(url, tmp_path / "cache")
    head = ColumnHead("text.x", "text", "caption", "<f4", (1,), {"text_encoder": ENCODER}, shard_set.fingerprint)
    parts = [ShardValues(values[:20], counts[:10]), ShardValues(values[20:], counts[10:])]
    written: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        from core import columns

        real = columns.publish_bytes
        patch.setattr(columns, "publish_bytes", lambda data, target: (written.append(target), real(data, target))[1])
        publish_column(url, head, ["train-00000.tar", "train-00001.tar"], ColumnValues(parts))
    assert written[-1].endswith("/columns/text.x/column.json") and len(written) == 5
    assert shard_set.column("text.x").of_captions(11).tolist() == [[22], [23]]
    memory.rm(f"{url.removeprefix('memory:/')}/columns/text.x/column.json")
    assert column_names(url) == []
    sweep_column(url, "text.x")
    assert unfinished_columns(url) == []


def test_the_text_column_of_an_encoder_is_found_where_every_set_has_it(tmp_path: Path) -> None:
    urls = [make_shard_set(tmp_path / name, 4, num_captions=1) for name in "ab"]
    spec, ones = TextEncoderSpec(**ENCODER), np.ones(4, int)
    put(urls[0], "labels", "labels", np.zeros(4, "<i4"))
    put(urls[0], "text.x", "text", np.zeros((4, 3), "<f2"), ones, origin={"text_encoder": ENCODER})
    assert text_column_of(urls[:1], spec) == "text.x" and text_column_of(urls, spec) is None
    wrong = {**ENCODER, "revision": "2"}
    put(urls[1], "text.x", "text", np.zeros((4, 3), "<f2"), ones, origin={"text_encoder": wrong})
    assert text_column_of(urls, spec) is None


def test_a_damaged_file_is_named_with_its_set(tmp_path: Path) -> None:
    url = make_shard_set(tmp_path / "set", 4)
    put(url, "labels", "labels", np.zeros(4, "<i4"))
    file = tmp_path / "set" / "columns" / "labels" / "train-00000.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    with pytest.raises(DamagedError, match=rf"{file}: damaged \(its hash does not fit\)"):
        ShardSet.open(url).column("labels").all_rows()


def test_the_bytes_of_a_head_stay_what_they_were() -> None:
    """Compared byte for byte when read: heads that earlier versions wrote must fit."""
    head = ColumnHead("labels", "labels", "sample", "<i4", (), {"file": "a"}, "f", classes=("\u00e9lan",))
    body = json.loads(json.dumps(asdict(head)))
    assert head_bytes(head) == sign_manifest(body, "column_sha256") and "\u00e9".encode() in head_bytes(head)


def test_a_head_of_another_version_is_refused_in_a_sentence(tmp_path: Path) -> None:
    from core.columns import _signed

    url = make_shard_set(tmp_path / "set", 4)
    put(url, "labels", "labels", np.zeros(4, "<i4"))
    file = tmp_path / "set" / "columns" / "labels" / "column.json"
    body = {key: value for key, value in json.loads(file.read_bytes()).items() if key != "column_sha256"}
    file.write_bytes(_signed({**body, "format_version": 2}))
    with pytest.raises(ManifestError, match="format 2 is newer than 1"):
        load_head(url, "labels")
    file.write_bytes(_signed({key: value for key, value in body.items() if key != "kind"}))
    with pytest.raises(ManifestError, match="has no 'kind'"):
        load_head(url, "labels")
    file.write_bytes(_signed({key: value for key, value in body.items() if key != "figures"}))
    assert load_head(url, "labels").figures == {}


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "..", "a b", "-x", "\u00fc"])
def test_a_column_is_not_called_what_is_no_folder(name: str) -> None:
    with pytest.raises(ManifestError, match="a name has letters, digits"):
        column_url("set", name)


def test_a_column_has_sizes_lengths_and_further_arrays(tmp_path: Path) -> None:
    urls = [make_shard_set(tmp_path / name, 12, seed=ord(name)) for name in "ab"]
    centroids = np.arange(6, dtype="<f4").reshape(2, 3)
    for url in urls:
        numbers, extras = np.zeros(12, "<i4"), {"centroids": centroids}
        head = put(url, "topics", "topics", numbers, origin={"num_topics": 2}, extras=extras)
    files = [path for path in (tmp_path / "b/columns/topics").iterdir() if path.name != "column.json"]
    assert head.bytes == sum(path.stat().st_size for path in files) and len(files) == 3
    column = ShardSet.open(urls).column("topics")
    assert len(column) == 24 and column.extra("centroids").tolist() == centroids.tolist()
    with pytest.raises(DamagedError, match=r"a/columns/topics/names\.npy: damaged \(not named by its column\.json\)"):
        column.extra("names")


def test_arrays_that_do_not_fit_the_set_are_damage(tmp_path: Path) -> None:
    url = make_shard_set(tmp_path / "set", 4, num_captions=1)
    fingerprint = ShardSet.open(url).fingerprint
    for name, rows, counts, said in (
        ("longer", 5, None, r"longer/train-00000\.npy: damaged \(int32 \(5,\), <i4 \(4,\) is right\)"),
        ("shorter", 3, None, r"\(int32 \(3,\), <i4 \(4,\) is right\)"),
        ("of-others", 6, [2, 2, 2], r"train-00000\.counts\.npy: damaged \(not of 4 samples\)"),
        ("of-more", 6, [2, 1, 1, 1, 1], r"counts\.npy: damaged \(not of 4 samples\)"),
    ):
        head = ColumnHead(name, "numbers", "caption" if counts else "sample", "<i4", (), {}, fingerprint)
        part = ShardValues(np.zeros(rows, "<i4"), None if counts is None else np.array(counts))
        publish_column(url, head, ["train-00000.tar"], ColumnValues([part]))
        column = ShardSet.open(url).column(name)
        with pytest.raises(DamagedError, match=said):
            column.of_captions(0) if counts else column.all_rows()


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    url = make_shard_set(tmp_path / "set", 4, num_captions=1)
    head = ColumnHead("numbers", "numbers", "caption", "<i4", (), {}, ShardSet.open(url).fingerprint)
    parts = [ShardValues(np.zeros(2, "<i4"), np.ones(2, int))] * 2
    with pytest.raises(ManifestError, match=r"two of its files would be called a\.counts\.npy. Rename that tar"):
        publish_column(url, head, ["a.tar", "a.counts.tar"], ColumnValues(parts))
    assert column_names(url) == unfinished_columns(url) == []


def test_a_failed_remote_column_leaves_nothing_and_one_that_is_there_stays(tmp_path: Path) -> None:
    import fsspec

    url, shards = f"memory://bucket-{time.time_ns()}/set", ["train-00000.tar"]
    head = ColumnHead("numbers", "numbers", "sample", "<i4", (), {}, "f")

    def breaks() -> Any:
        yield ShardValues(np.zeros(4, "<i4"))
        raise DamagedError("planted")

    with pytest.raises(DamagedError, match="planted"):
        publish_column(url, head, [*shards, "train-00001.tar"], ColumnValues(breaks()))
    assert not fsspec.filesystem("memory").exists(f"{url.removeprefix('memory:/')}/columns/numbers")
    ours = publish_column(url, head, shards, ColumnValues([ShardValues(np.ones(4, "<i4"))], figures={"ones": 4}))
    with pytest.raises(StorageError, match="is there already. Choose another name or delete it"):
        publish_column(url, head, shards, ColumnValues([ShardValues(np.zeros(4, "<i4"))]))
    sweep_column(url, "numbers")  # it is whole
    assert load_head(url, "numbers") == ours and ours.figures == {"ones": 4}
