"""Where the classes of a set's samples come from."""

from dataclasses import replace

import numpy as np
import pytest
from column_folders import add_column
from shard_sets import make_shard_set

from core.errors import DataError, ManifestError
from core.manifest import load_manifest, save_manifest
from core.shard_set import ShardSet
from eval.evaluations.evaluation import Gallery
from eval.features import Pictures
from eval.gallery import GallerySource, joint_classes
from eval.labels import Labels, label_column, labels_of


@pytest.fixture
def url(tmp_path):
    return make_shard_set(tmp_path / "set", 6)


def test_a_set_without_labels_has_none(url):
    assert labels_of(ShardSet.open(url)) is None


def test_the_labels_column_is_found_and_a_named_one_goes_before_it(url):
    add_column(url, "labels", np.array([0, 1, -1, 0, 1, 1], "<i4"), classes=("cat", "dog"))
    add_column(url, "labels.fine", np.array([2, 1, 0, 2, 1, 0], "<i4"), classes=("a", "b", "c"))
    shard_set = ShardSet.open(url)
    assert labels_of(shard_set).numbers.tolist() == [0, 1, -1, 0, 1, 1]
    fine = labels_of(shard_set, label_column({"label": "labels.fine"}, shard_set.urls))
    assert fine.numbers.tolist() == [2, 1, 0, 2, 1, 0] and fine.classes == ("a", "b", "c")
    assert label_column({}, shard_set.urls) == ""
    with pytest.raises(ManifestError, match="has no column 'absent'"):
        labels_of(shard_set, "absent")


def test_labels_of_an_older_set_are_read_from_its_samples(url, monkeypatch):
    save_manifest(replace(load_manifest(url), classes=("cat", "dog")), url)
    names = ["dog", "cat", None, "dog", "cat", "cat"]
    monkeypatch.setattr(ShardSet, "info", lambda self, sample: {"label": names[sample]})
    assert labels_of(ShardSet.open(url)).numbers.tolist() == [1, 0, -1, 1, 0, 0]
    names[0] = "cow"
    with pytest.raises(DataError, match="label 'cow' is none of the set's classes"):
        labels_of(ShardSet.open(url))


def test_what_is_measured_is_no_part_of_the_gallery(url, tmp_path):
    shard_set, labels = ShardSet.open(url), Labels(np.array([0, 1, 1, -1, 0, 1]), ("cat", "dog"))
    assert GallerySource.of(shard_set, labels, shard_set) is None  # leave-one-out takes its place
    some = ShardSet.open(make_shard_set(tmp_path / "some", 2))  # shows the first two images of the other
    assert shard_set.image_ids(np.arange(2)).tolist() == some.image_ids(np.arange(2)).tolist()
    assert GallerySource.of(shard_set, labels, some).samples.tolist() == [2, 4, 5]


def test_one_name_is_one_class_in_the_set_and_its_gallery(url, tmp_path, monkeypatch):
    ours = Labels(np.array([0, 1, -1]), ("dog", "cow"))
    others = ShardSet.open(make_shard_set(tmp_path / "others", 8))
    monkeypatch.setattr(others, "image_ids", lambda samples: np.arange(len(samples), dtype=np.uint64))
    theirs = GallerySource.of(ShardSet.open(url), Labels(np.array([0, 1, 1, -1, 0, 1]), ("cat", "dog")), others)
    classes = joint_classes(ours, theirs)
    assert classes == ("dog", "cow", "cat") and joint_classes(ours, None) == ("dog", "cow")
    assert ours.among(classes).tolist() == [0, 1, -1]
    assert theirs.samples.tolist() == [0, 1, 2, 4, 5]
    gallery = theirs.gallery(Pictures(np.eye(3), np.array([0, 3, 5])), classes)  # 3: a substitute without a class
    assert isinstance(gallery, Gallery)
    assert gallery.labels.tolist() == [2, 0] and gallery.samples.tolist() == [0, 5]
